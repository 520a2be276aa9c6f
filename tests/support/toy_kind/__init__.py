"""A stage kind of four files: continued pretraining on plain texts. Importing `recipe` adds it to the table."""
