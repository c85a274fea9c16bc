"""The errors that this system raises on purpose.

    NarrowgateError
    |- InvalidRequest                the caller must change the request
    |  |- EmptyInput
    |  |- InputTooLong
    |  |- UnknownLanguage
    |  |- UnsupportedParameter
    |  |- BodyTooLarge
    |  |- BodyTimeout
    |  |- UnsupportedMediaType       content-type or content-encoding
    |  `- TooManyInputs
    |- Unauthenticated               the API key is missing or unknown
    |- Forbidden                     the key has no right to this
    |- RateLimited                   the tenant's own limit; with the time to wait
    |- BudgetExceeded                the tenant's budget of the day or month is spent or held
    |- NotFound
    |  |- UnknownTask
    |  `- UnknownModel
    |- FileInUse                     the file is the input of a batch that has not ended
    |- BatchEnded                    the batch has ended and cannot be cancelled
    |- Unavailable                   a retry may help
    |  |- QueueFull
    |  |- ModelStarting
    |  |  `- ModelPreparing          its files are being made, or it is loading for the first time
    |  |- ModelUnavailable
    |  |  `- ModelFailed             it could not be prepared; only a restart may help
    |  |- LedgerUnavailable          a paid call that cannot be recorded is not made
    |  |- StorageUnavailable         the state folder cannot be written now
    |  `- ShuttingDown
    |- DeadlineExceeded
    |- FrontierNotConfigured         no key for any provider that could answer
    |- MaxCostExceeded               the client's own limit leaves no provider
    |- UnpricedModel                 the model has no price, so its cost cannot be recorded
    |- FrontierError                 a provider was called and gave no answer
    |  |- FrontierRejected           the provider refuses the request
    |  |- FrontierContextTooLong     the model's window is too small for it
    |  |- FrontierAuthFailed         the key is wrong, or may not use the model
    |  |- FrontierUnknownModel       the provider has no such model
    |  |- FrontierQuotaExhausted     the account has no money left
    |  |- FrontierRateLimited
    |  |- FrontierUnavailable        not reached, overloaded, or its breaker is open
    |  |- FrontierTimeout            no answer in the time that the request had
    |  |- FrontierInvalidResponse    the response is unreadable
    |  `- FrontierStreamBroken       the answer broke off after it had begun
    |- EngineFailure                 the model ran and failed
    |- QuantizationFailed            the quantization ran and failed
    |- EvaluationFailed              a gate did not finish: it has no verdict
    |- TaskNotAttested               no attestation covers the task on the model
    |- ClaimWithdrawn                a person withdrew the claim on a task, and no reference answers
    |- HeadRefused                   a learned head is damaged, or signed by no trusted key
    |- FitFailed                     a head was not fitted: too few labels, or beyond its bounds
    `- ConfigurationError            the process must not start
       |- InvalidSettings
       |- InvalidTaskSpec
       |- MaterializationFailed
       |- InvalidRecipe
       |- InvalidCalibration
       |  `- CalibrationOverlap
       |- UnsuitableModel            of this model no such artifact can be made
       |- UnsuitableTarget           the artifact would not run (fast) where it is to be served
       |- InsufficientResources
       |- InvalidArgument
       |- OutputInUse
       |- EnvironmentUnavailable
       |- InvalidSuite
       |- InvalidKey
       |- LedgerUnusable             the ledger's database cannot be opened or brought up to date
       `- AttestationRefused          the model must not be served

Each class has a `code` (stable, for programs) and says whether the same request may succeed
later (`retryable`). The gateway holds the one table that maps classes to HTTP.
"""

from typing import Any, ClassVar, Self

from serving.contracts.model_status import Progress


class NarrowgateError(Exception):
    """Base of the tree.

    message: what failed and the value. field: the request field or setting at fault, dotted.
    fix: what to change. retry_after_s: seconds to wait before a retry, where known.
    """

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        fix: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.fix = fix
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle by positional arguments only; these cross Ray's process borders.
        return (_rebuild, (type(self), self.message, self.field, self.fix, self.retry_after_s))

    @classmethod
    def _make(
        cls, message: str, field: str | None, fix: str | None, retry_after_s: float | None
    ) -> Self:
        return cls(message, field=field, fix=fix, retry_after_s=retry_after_s)


def _rebuild(
    cls: type[NarrowgateError],
    message: str,
    field: str | None,
    fix: str | None,
    retry_after_s: float | None,
) -> NarrowgateError:
    return cls._make(message, field, fix, retry_after_s)


class InvalidRequest(NarrowgateError):
    """The request is not valid."""

    code = "invalid_request"


class EmptyInput(InvalidRequest):
    """The input has no visible character."""

    code = "empty_input"


class InputTooLong(InvalidRequest):
    """Prompt and bounded output together do not fit the model's window."""

    code = "context_length_exceeded"


class UnknownLanguage(InvalidRequest):
    """A language that the task does not offer, or one that could not be detected."""

    code = "unknown_language"


class UnsupportedParameter(InvalidRequest):
    """A request field that this server does not support."""

    code = "unsupported_parameter"


class BodyTooLarge(InvalidRequest):
    """The HTTP body exceeds the configured size."""

    code = "body_too_large"


class UnsupportedMediaType(InvalidRequest):
    """The body's media type is not JSON, or the body is compressed."""

    code = "unsupported_media_type"


class BodyTimeout(InvalidRequest):
    """The HTTP body did not arrive in the configured time."""

    code = "request_timeout"


class TooManyInputs(InvalidRequest):
    """More inputs in one request than the configured number."""

    code = "too_many_inputs"


class Unauthenticated(NarrowgateError):
    """The request carries no known API key."""

    code = "invalid_api_key"


class Forbidden(NarrowgateError):
    """The API key has no right to this."""

    code = "forbidden"


class RateLimited(NarrowgateError):
    """The tenant exceeds its rate or its number of concurrent requests."""

    code = "rate_limit_exceeded"
    retryable = True


class BudgetExceeded(NarrowgateError):
    """The call could cost more than the rest of the tenant's budget; it was not made."""

    code = "budget_exceeded"


class NotFound(NarrowgateError):
    """The named path, task, model or tenant does not exist."""

    code = "not_found"


class UnknownTask(NotFound):
    """No task of that name is configured."""

    code = "unknown_task"


class UnknownModel(NotFound):
    """No model of that name is served."""

    code = "model_not_found"


class FileInUse(NarrowgateError):
    """The file is the input of a batch that has not ended."""

    code = "file_in_use"


class BatchEnded(NarrowgateError):
    """The batch has ended; it cannot be cancelled."""

    code = "batch_ended"


class Unavailable(NarrowgateError):
    """The server cannot take the request now."""

    code = "unavailable"
    retryable = True


class QueueFull(Unavailable):
    """The queue is full."""

    code = "queue_full"


class ModelStarting(Unavailable):
    """The model has not finished loading."""

    code = "model_starting"


class ModelPreparing(ModelStarting):
    """The model's files are being made or loaded. progress: the current step, where known."""

    code = "model_preparing"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        fix: str | None = None,
        retry_after_s: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(message, field=field, fix=fix, retry_after_s=retry_after_s)
        self.progress = progress

    def __reduce__(self) -> tuple[Any, ...]:
        return (*super().__reduce__(), {"progress": self.progress})


class ModelUnavailable(Unavailable):
    """No replica of the model is healthy."""

    code = "model_unavailable"


class ModelFailed(ModelUnavailable):
    """The model could not be prepared and will not serve until the process is restarted."""

    code = "model_failed"
    retryable = False


class LedgerUnavailable(Unavailable):
    """The ledger cannot be read or written now."""

    code = "ledger_unavailable"


class StorageUnavailable(Unavailable):
    """The state folder's files cannot be written now: the disk is full, read-only or broken."""

    code = "storage_unavailable"


class ShuttingDown(Unavailable):
    """The server is shutting down and takes no new requests."""

    code = "shutting_down"


class DeadlineExceeded(NarrowgateError):
    """The request's time ran out before its answer was ready.

    Not retryable: the client's time is over, and a provider may have been paid meanwhile.
    """

    code = "deadline_exceeded"


class FrontierNotConfigured(NarrowgateError):
    """Only a frontier model can answer, and no configured provider has a key."""

    code = "frontier_not_configured"


class MaxCostExceeded(NarrowgateError):
    """The worst case of every model that could answer exceeds the client's limit."""

    code = "max_cost_exceeded"


class UnpricedModel(NarrowgateError):
    """The model has no price. No price does not mean that it is free."""

    code = "unpriced_model"


class FrontierError(NarrowgateError):
    """A provider was called and gave no answer."""

    code = "frontier_failed"


class FrontierRejected(FrontierError):
    """The provider refuses the request."""

    code = "frontier_rejected_request"


class FrontierContextTooLong(FrontierRejected):
    """The request does not fit the frontier model's window."""

    code = "frontier_context_length_exceeded"


class FrontierAuthFailed(FrontierError):
    """The provider refuses the key, or refuses it for this model."""

    code = "frontier_auth_failed"


class FrontierUnknownModel(FrontierError):
    """The provider has no model of that name."""

    code = "frontier_unknown_model"


class FrontierQuotaExhausted(FrontierError):
    """The account with the provider is out of credit."""

    code = "frontier_quota_exhausted"


class FrontierRateLimited(FrontierError):
    """The provider limits the rate of requests or tokens."""

    code = "frontier_rate_limited"
    retryable = True


class FrontierUnavailable(FrontierError):
    """The provider is unreachable or overloaded, or its circuit breaker is open."""

    code = "frontier_unavailable"
    retryable = True


class FrontierTimeout(FrontierError):
    """The provider did not answer in time. The call may have been billed: a repeat would be too."""

    code = "frontier_timeout"


class FrontierInvalidResponse(FrontierError):
    """The provider's response is unreadable. The call may have been billed."""

    code = "frontier_invalid_response"


class FrontierStreamBroken(FrontierError):
    """The provider's answer ended early; what came before was delivered."""

    code = "frontier_stream_broken"


class EngineFailure(NarrowgateError):
    """The engine accepted the work and failed on it."""

    code = "engine_failure"


class QuantizationFailed(NarrowgateError):
    """The quantization failed although its checks had passed."""

    code = "quantization_failed"


class EvaluationFailed(NarrowgateError):
    """A gate did not finish: it has no verdict."""

    code = "evaluation_failed"


class TaskNotAttested(NarrowgateError):
    """No attestation covers this task on the model that would answer it."""

    code = "task_not_attested"


class ClaimWithdrawn(NarrowgateError):
    """A person withdrew the claim on a task, and no reference may answer in its place."""

    code = "claim_withdrawn"


class HeadRefused(NarrowgateError):
    """A learned head is damaged, of another form, or signed by no trusted key."""

    code = "head_refused"


class FitFailed(NarrowgateError):
    """A head was not fitted: too few labels, or the fit exceeded its time or memory."""

    code = "fit_failed"


class ConfigurationError(NarrowgateError):
    """The configuration cannot be served; raised before anything starts."""

    code = "configuration_error"


class InvalidSettings(ConfigurationError):
    """A setting is missing, out of range, or refused by the linter."""

    code = "invalid_settings"


class InvalidTaskSpec(ConfigurationError):
    """A task file does not describe a task."""

    code = "invalid_task_spec"


class MaterializationFailed(ConfigurationError):
    """The model files could not be produced or found."""

    code = "materialization_failed"


class InvalidRecipe(ConfigurationError):
    """A recipe file does not describe a quantization."""

    code = "invalid_recipe"


class InvalidCalibration(ConfigurationError):
    """The calibration data are missing, unreadable or too few."""

    code = "invalid_calibration"


class CalibrationOverlap(InvalidCalibration):
    """Calibration data hold examples on which the gate tests."""

    code = "calibration_overlap"


class UnsuitableModel(ConfigurationError):
    """The model is not one that the recipe can be applied to."""

    code = "unsuitable_model"


class UnsuitableTarget(ConfigurationError):
    """The hardware or engine that is to serve the artifact cannot run it, or not fast."""

    code = "unsuitable_target"


class InsufficientResources(ConfigurationError):
    """Too little memory or disk space for the request."""

    code = "insufficient_resources"


class InvalidArgument(ConfigurationError):
    """A command line argument is outside its range."""

    code = "invalid_argument"


class OutputInUse(ConfigurationError):
    """The output is not empty, cannot be written, or another run writes to it."""

    code = "output_in_use"


class EnvironmentUnavailable(ConfigurationError):
    """The environment that a step runs in is not there and could not be made."""

    code = "environment_unavailable"


class InvalidSuite(ConfigurationError):
    """An evaluation suite is missing, unreadable or unfit for a gate."""

    code = "invalid_suite"


class InvalidKey(ConfigurationError):
    """A key file is missing, unreadable or of another kind than Ed25519."""

    code = "invalid_key"


class LedgerUnusable(ConfigurationError):
    """The ledger's database cannot be opened, or is not one of this version."""

    code = "ledger_unusable"


class AttestationRefused(ConfigurationError):
    """The model has no attestation, or one that is not valid for its files and this engine."""

    code = "attestation_refused"
