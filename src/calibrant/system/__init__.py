"""What everybody needs of the machine.

That is durable files and their seals, processes and what passes between them, time, progress, and
optional packages.
"""
