"""The lab, for whoever compares: grids of runs, statistics, advice, tables and pages.

The rest of the package is the core: it compresses a model with data, and measures it. The core
imports nothing of the lab; where a command needs both, the command line joins them.
"""
