"""Damaged packages by the thousand: nothing but a documented error or a correct result.

``seeds`` are small packages of many forms, ``mutators`` damage them, a ``trial`` puts one through
everything that mlopt does with a package, and the ``driver`` runs trials in processes of their own.
``python -m tests.fuzz --help`` is the long form; ``test_fuzz`` runs a few seconds of it.

``differential`` is another trial: packages that are odd rather than damaged (``oddities``), read
beside coremltools. ``python -m tests.fuzz --differential`` is its long form.
"""
