"""The tables that a comparison writes: schemas, files, and the record of the environment."""
