"""The embedded corpora, and the files that they are made from."""
