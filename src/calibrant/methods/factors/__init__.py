"""Methods that store matrices as products of smaller ones, one file each."""
