"""Support: files, resources, progress and text helpers that know nothing of skills."""
