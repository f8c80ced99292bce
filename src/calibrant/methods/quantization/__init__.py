"""Methods that round weights, one file each."""
