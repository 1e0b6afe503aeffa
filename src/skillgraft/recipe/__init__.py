"""The recipe: its schema, loading, and messages for what is wrong with one."""
