"""Bundles over HTTP: `pmd-serve`, and the ASGI application it runs.

    from pmd.serving import Scorer
    from pmd.serving.server.app import create_app
    app = create_app({"umls": Scorer.load("bundles/umls-pmd-grade-3-int8")})

A request goes app -> guard (key, metrics) -> handlers -> batching -> calls -> Scorer. Importing this package loads
nothing; its modules need the extra `server`.
"""
