"""The load tester: times token streams of any LLM endpoint and says how far each number can be trusted."""

__version__ = "0.1.0"
