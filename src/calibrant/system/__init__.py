"""What the machine does for everybody: durable files and their seals, processes and what passes between them, time, progress, optional packages."""
