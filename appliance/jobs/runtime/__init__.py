"""What every kind of job stands on.

Orders, sealed inputs and outputs, checkpoints, reports, ranks.
"""
