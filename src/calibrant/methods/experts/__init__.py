"""Methods that remove or merge experts of mixture-of-experts models, one file each."""
