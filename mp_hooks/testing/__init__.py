"""The conformance kit: what every adapter is held to, ours and a porter's.

from mp_hooks.testing import ConformanceSuite, HostCase

class MyCase(HostCase): ...           # a tiny instance of the host, and how to sample it

class TestMyHost(ConformanceSuite):   # pytest collects it
    case = MyCase()
"""

from mp_hooks.testing.conformance import ConformanceSuite, HostCase

__all__ = ["ConformanceSuite", "HostCase"]
