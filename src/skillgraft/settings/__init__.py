"""Settings: option classes that libraries and stages share. Loads no torch."""
