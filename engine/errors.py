"""Every exception the engine raises on purpose, in one tree."""


class EngineError(Exception):
    """Base of all deliberate engine errors. The message is one line, fit to be shown to an operator."""


class ModelLoadError(EngineError):
    """The model cannot be loaded: missing directory, unknown architecture, damaged or mismatching weights."""


class ConfigError(EngineError):
    """The engine's configuration contradicts itself, the model or the machine."""


class RankError(EngineError):
    """The ranks that run the model together cannot go on: one of them is gone, or has failed in a pass."""


class RequestError(EngineError):
    """A request that can never be served. `param` names the field at fault; `code` is machine-readable."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class OutOfPages(EngineError):
    """The page pool has too few free pages for an allocation. Nothing was allocated."""


class IntegrityError(EngineError):
    """A bookkeeping invariant does not hold. Always a defect of the engine, never of a request."""
