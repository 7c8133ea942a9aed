"""Batch jobs: many questions about many pictures, from a source to a destination, exactly once each (`run.py`)."""
