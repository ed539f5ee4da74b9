"""What a request leaves behind: snapshot, compare, report."""
