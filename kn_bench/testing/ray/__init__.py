"""``--engine ray``: units computed by a pool of Ray's actors, tests reported where pytest runs.

engine    in the pytest process: hands out units, runs the tests of those that are computed
pool      the actors, one a GPU or a few cores; one that dies is replaced
actor     what Ray starts: keeps a worker process and passes messages on
worker    a pytest session that runs no tests: models, methods and fixtures as in any other
messages  what is sent
"""
