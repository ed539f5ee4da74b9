"""Where sandboxes run: the loop, threads, stacks of their own."""
