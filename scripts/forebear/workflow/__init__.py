"""What only the workflow's rules use: points and passes, recipes, what a dry run tells."""
