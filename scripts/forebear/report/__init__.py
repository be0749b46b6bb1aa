"""Pages for people, and the provenance of a study."""
