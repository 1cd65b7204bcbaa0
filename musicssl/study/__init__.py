"""The report of a study, one page of tables and figures that compare encoders on tasks.

Imports musicssl.probing and what lies below it.
"""
