"""Chat: one prompt to several checkpoints, the answers side by side; a skill's λ is changed in memory."""
