"""The figures of the documentation that are no times: each page's tables, computed with several seeds.

``python -m benchmarks.quality`` computes all, in about twenty minutes of one core; names after it (such as ``vae``)
compute those pages only. Every module here has the figures of one page of ``docs/``, as a function ``run``.
"""
