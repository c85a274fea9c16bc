"""Every error this system raises on purpose.

    NarrowgateError
    |- InvalidRequest                the caller must change the request
    |  |- EmptyInput
    |  |- InputTooLong
    |  |- UnknownLanguage
    |  |- UnsupportedParameter
    |  |- BodyTooLarge
    |  |- UnsupportedMediaType       content-type or content-encoding
    |  `- TooManyInputs
    |- Unauthenticated               no API key, or none that is known
    |- Forbidden                     the key is known and may not do this
    |- RateLimited                   the tenant's own limit; it says when to come back
    |- BudgetExceeded                the tenant's money for the day or month is spent or held
    |- NotFound
    |  |- UnknownTask
    |  `- UnknownModel
    |- Unavailable                   a retry may help
    |  |- QueueFull
    |  |- ModelStarting
    |  |- ModelUnavailable
    |  |- LedgerUnavailable          what may not go unrecorded, or unchecked, is not done
    |  `- ShuttingDown
    |- DeadlineExceeded
    |- FrontierNotConfigured         no key for any provider that could answer
    |- MaxCostExceeded               the client's own limit leaves no provider
    |- UnpricedModel                 the model has no price, so its cost cannot be recorded
    |- FrontierError                 a provider was asked and gave no answer
    |  |- FrontierRejected           the provider finds fault with the request
    |  |- FrontierContextTooLong     the model's window is too small for it
    |  |- FrontierAuthFailed         the key is wrong, or may not use the model
    |  |- FrontierUnknownModel       the provider has no such model
    |  |- FrontierQuotaExhausted     the account has no money left
    |  |- FrontierRateLimited
    |  |- FrontierUnavailable        not reached, overloaded, or its breaker is open
    |  |- FrontierTimeout            no answer in the time that the request had
    |  |- FrontierInvalidResponse    what came back could not be read
    |  `- FrontierStreamBroken       the answer broke off after it had begun
    |- EngineFailure                 the model ran and failed
    |- QuantizationFailed            the quantization ran and failed
    |- EvaluationFailed              a gate could not be run to its end, so it says nothing
    |- TaskNotAttested               the model has no signed proof that it is fit for the task
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
        # Exceptions pickle by positional arguments alone; these cross Ray's process borders.
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
    """The request cannot be answered as it stands."""

    code = "invalid_request"


class EmptyInput(InvalidRequest):
    """The text to work on is empty or only white space."""

    code = "empty_input"


class InputTooLong(InvalidRequest):
    """Prompt and bounded output together do not fit the model's window."""

    code = "context_length_exceeded"


class UnknownLanguage(InvalidRequest):
    """A language that the task does not offer, or one that could not be detected."""

    code = "unknown_language"


class UnsupportedParameter(InvalidRequest):
    """A request field that this server refuses rather than ignores."""

    code = "unsupported_parameter"


class BodyTooLarge(InvalidRequest):
    """The HTTP body exceeds the configured size."""

    code = "body_too_large"


class UnsupportedMediaType(InvalidRequest):
    """The body has another type or encoding than JSON as it is."""

    code = "unsupported_media_type"


class TooManyInputs(InvalidRequest):
    """More inputs in one request than the configured number."""

    code = "too_many_inputs"


class Unauthenticated(NarrowgateError):
    """The request carries no API key that is known."""

    code = "invalid_api_key"


class Forbidden(NarrowgateError):
    """The API key is known, and not for this."""

    code = "forbidden"


class RateLimited(NarrowgateError):
    """The tenant sends more than it may, by rate or at once."""

    code = "rate_limit_exceeded"
    retryable = True


class BudgetExceeded(NarrowgateError):
    """The call might cost more than is left of the tenant's budget; it was not made."""

    code = "budget_exceeded"


class NotFound(NarrowgateError):
    """The named thing does not exist here."""

    code = "not_found"


class UnknownTask(NotFound):
    """No task of that name is configured."""

    code = "unknown_task"


class UnknownModel(NotFound):
    """No model of that name is served."""

    code = "model_not_found"


class Unavailable(NarrowgateError):
    """The request is fine and this server cannot take it now."""

    code = "unavailable"
    retryable = True


class QueueFull(Unavailable):
    """As many requests wait as the settings allow."""

    code = "queue_full"


class ModelStarting(Unavailable):
    """The model has not finished loading."""

    code = "model_starting"


class ModelUnavailable(Unavailable):
    """No healthy replica of the model is left for now."""

    code = "model_unavailable"


class LedgerUnavailable(Unavailable):
    """The books cannot be read or written now."""

    code = "ledger_unavailable"


class ShuttingDown(Unavailable):
    """The server drains and takes no new requests."""

    code = "shutting_down"


class DeadlineExceeded(NarrowgateError):
    """The request's time ran out before its answer was ready."""

    code = "deadline_exceeded"
    retryable = True


class FrontierNotConfigured(NarrowgateError):
    """Only a frontier model could answer, and no provider of one has a key."""

    code = "frontier_not_configured"


class MaxCostExceeded(NarrowgateError):
    """Every model that could answer might cost more than the client allows."""

    code = "max_cost_exceeded"


class UnpricedModel(NarrowgateError):
    """The model has no price. No price does not mean that it is free."""

    code = "unpriced_model"


class FrontierError(NarrowgateError):
    """A provider gave no answer."""

    code = "frontier_failed"


class FrontierRejected(FrontierError):
    """The provider finds fault with the request itself."""

    code = "frontier_rejected_request"


class FrontierContextTooLong(FrontierRejected):
    """The request does not fit the frontier model's window."""

    code = "frontier_context_length_exceeded"


class FrontierAuthFailed(FrontierError):
    """The provider does not accept the key, or not for this model."""

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
    """The provider was not reached, is overloaded, or its circuit breaker is open."""

    code = "frontier_unavailable"
    retryable = True


class FrontierTimeout(FrontierError):
    """The provider did not answer in time."""

    code = "frontier_timeout"
    retryable = True


class FrontierInvalidResponse(FrontierError):
    """What the provider sent could not be read."""

    code = "frontier_invalid_response"
    retryable = True


class FrontierStreamBroken(FrontierError):
    """The provider's answer broke off after it had begun; what came before was delivered."""

    code = "frontier_stream_broken"


class EngineFailure(NarrowgateError):
    """The engine accepted the work and failed on it."""

    code = "engine_failure"


class QuantizationFailed(NarrowgateError):
    """Everything was checked and the quantization failed all the same."""

    code = "quantization_failed"


class EvaluationFailed(NarrowgateError):
    """A gate's run broke off: no verdict, neither pass nor fail."""

    code = "evaluation_failed"


class TaskNotAttested(NarrowgateError):
    """No attestation covers this task on the model that would answer it."""

    code = "task_not_attested"


class ConfigurationError(NarrowgateError):
    """What was configured cannot be served; raised before anything starts."""

    code = "configuration_error"


class InvalidSettings(ConfigurationError):
    """A setting is missing, out of range, or known to do harm."""

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
    """Too little memory or disk space for what was asked."""

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
