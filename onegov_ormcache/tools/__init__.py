"""What people use beside the cache: the command line and the demo."""
