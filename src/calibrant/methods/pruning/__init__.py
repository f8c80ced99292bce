"""Methods that remove single weights, one file each."""
