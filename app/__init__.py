"""What people touch: command line and chat page."""
