"""What goes on without a caller: the scheduler, and the queue of the object store."""
