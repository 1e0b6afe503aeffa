"""`skillgraft skill …`: skills as files. Show, check, convert, pack, keep in the library, share."""
