"""Other tools' captures of a teacher, read as their formats say: DistillKit's and speculators'."""
