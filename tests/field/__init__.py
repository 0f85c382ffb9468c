"""Models that other people made, put through every door of mlopt: ``make field``.

Not part of ``make test``: the models are downloaded, and all of them take some minutes.
"""
