"""Methods that remove whole blocks, one file each."""
