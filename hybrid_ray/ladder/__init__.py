"""A ladder: one search per model size, from the smallest to the largest, each starting from what the last one found.

    ladder section -> rung jobs -> plan (every rung, before anything starts)
      for each rung: learning rate -> settings and ranges from the rung below -> an ordinary study -> report

Every rung is an ordinary study in the ladder's directory; ``transfer.json`` records what was carried from where.
"""
