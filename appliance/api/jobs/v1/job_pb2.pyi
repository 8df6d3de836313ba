import datetime

from appliance.api.common.v1 import value_pb2 as _value_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Job(_message.Message):
    __slots__ = ("name", "uid", "prepare", "train", "quantize", "evaluate", "state", "state_reason", "epoch", "nodes", "progress", "restarts", "outputs", "result", "creator", "create_time", "start_time", "end_time", "etag", "has_logs", "checkpoint_step", "on_lost")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Job.State]
        STATE_QUEUED: _ClassVar[Job.State]
        STATE_STARTING: _ClassVar[Job.State]
        STATE_RUNNING: _ClassVar[Job.State]
        STATE_SUCCEEDED: _ClassVar[Job.State]
        STATE_FAILED: _ClassVar[Job.State]
        STATE_CANCELLED: _ClassVar[Job.State]
        STATE_REGISTERING: _ClassVar[Job.State]
        STATE_PAUSED: _ClassVar[Job.State]
        STATE_PAUSING: _ClassVar[Job.State]
    STATE_UNSPECIFIED: Job.State
    STATE_QUEUED: Job.State
    STATE_STARTING: Job.State
    STATE_RUNNING: Job.State
    STATE_SUCCEEDED: Job.State
    STATE_FAILED: Job.State
    STATE_CANCELLED: Job.State
    STATE_REGISTERING: Job.State
    STATE_PAUSED: Job.State
    STATE_PAUSING: Job.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    HAS_LOGS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_STEP_FIELD_NUMBER: _ClassVar[int]
    ON_LOST_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    prepare: PrepareSpec
    train: TrainSpec
    quantize: QuantizeSpec
    evaluate: EvaluateSpec
    state: Job.State
    state_reason: str
    epoch: int
    nodes: _containers.RepeatedScalarFieldContainer[str]
    progress: Progress
    restarts: int
    outputs: _containers.RepeatedScalarFieldContainer[str]
    result: JobResult
    creator: str
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    etag: str
    has_logs: bool
    checkpoint_step: int
    on_lost: OnLost
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., prepare: _Optional[_Union[PrepareSpec, _Mapping]] = ..., train: _Optional[_Union[TrainSpec, _Mapping]] = ..., quantize: _Optional[_Union[QuantizeSpec, _Mapping]] = ..., evaluate: _Optional[_Union[EvaluateSpec, _Mapping]] = ..., state: _Optional[_Union[Job.State, str]] = ..., state_reason: _Optional[str] = ..., epoch: _Optional[int] = ..., nodes: _Optional[_Iterable[str]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., restarts: _Optional[int] = ..., outputs: _Optional[_Iterable[str]] = ..., result: _Optional[_Union[JobResult, _Mapping]] = ..., creator: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ..., has_logs: _Optional[bool] = ..., checkpoint_step: _Optional[int] = ..., on_lost: _Optional[_Union[OnLost, _Mapping]] = ...) -> None: ...

class OnLost(_message.Message):
    __slots__ = ("replace_after_seconds", "wait")
    REPLACE_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    replace_after_seconds: int
    wait: bool
    def __init__(self, replace_after_seconds: _Optional[int] = ..., wait: _Optional[bool] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("step", "total", "message", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    step: int
    total: int
    message: str
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, step: _Optional[int] = ..., total: _Optional[int] = ..., message: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class JobMetric(_message.Message):
    __slots__ = ("step", "epoch", "values")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    step: int
    epoch: int
    values: _containers.ScalarMap[str, float]
    def __init__(self, step: _Optional[int] = ..., epoch: _Optional[int] = ..., values: _Optional[_Mapping[str, float]] = ...) -> None: ...

class JobResult(_message.Message):
    __slots__ = ("values", "dropped")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class DroppedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VALUES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    values: _containers.ScalarMap[str, float]
    dropped: _containers.ScalarMap[str, int]
    def __init__(self, values: _Optional[_Mapping[str, float]] = ..., dropped: _Optional[_Mapping[str, int]] = ...) -> None: ...

class PrepareSpec(_message.Message):
    __slots__ = ("datasets", "output_dataset", "output_tokenizer", "vocabulary_size", "near_duplicate_threshold", "validation_fraction", "keep_personal_data", "minimum_characters", "shard_tokens", "seed")
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DATASET_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    NEAR_DUPLICATE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FRACTION_FIELD_NUMBER: _ClassVar[int]
    KEEP_PERSONAL_DATA_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    SHARD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    datasets: _containers.RepeatedScalarFieldContainer[str]
    output_dataset: str
    output_tokenizer: str
    vocabulary_size: int
    near_duplicate_threshold: float
    validation_fraction: float
    keep_personal_data: bool
    minimum_characters: int
    shard_tokens: int
    seed: int
    def __init__(self, datasets: _Optional[_Iterable[str]] = ..., output_dataset: _Optional[str] = ..., output_tokenizer: _Optional[str] = ..., vocabulary_size: _Optional[int] = ..., near_duplicate_threshold: _Optional[float] = ..., validation_fraction: _Optional[float] = ..., keep_personal_data: _Optional[bool] = ..., minimum_characters: _Optional[int] = ..., shard_tokens: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class Architecture(_message.Message):
    __slots__ = ("layers", "hidden_size", "intermediate_size", "attention_heads", "key_value_heads", "context_length", "tie_embeddings")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    INTERMEDIATE_SIZE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_HEADS_FIELD_NUMBER: _ClassVar[int]
    KEY_VALUE_HEADS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TIE_EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    context_length: int
    tie_embeddings: bool
    def __init__(self, layers: _Optional[int] = ..., hidden_size: _Optional[int] = ..., intermediate_size: _Optional[int] = ..., attention_heads: _Optional[int] = ..., key_value_heads: _Optional[int] = ..., context_length: _Optional[int] = ..., tie_embeddings: _Optional[bool] = ...) -> None: ...

class Mesh(_message.Message):
    __slots__ = ("data", "tensor", "pipeline")
    DATA_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    data: int
    tensor: int
    pipeline: int
    def __init__(self, data: _Optional[int] = ..., tensor: _Optional[int] = ..., pipeline: _Optional[int] = ...) -> None: ...

class TrainSpec(_message.Message):
    __slots__ = ("dataset", "output_model", "architecture", "mesh", "steps", "batch_size", "sequence_length", "microbatches", "learning_rate", "warmup_steps", "weight_decay", "gradient_clip", "seed", "checkpoint_interval", "pipeline_schedule", "stall_seconds", "keep_last", "keep_every", "from_checkpoint")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_MODEL_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    MESH_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MICROBATCHES_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    WARMUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_CLIP_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    STALL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    KEEP_LAST_FIELD_NUMBER: _ClassVar[int]
    KEEP_EVERY_FIELD_NUMBER: _ClassVar[int]
    FROM_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    output_model: str
    architecture: Architecture
    mesh: Mesh
    steps: int
    batch_size: int
    sequence_length: int
    microbatches: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    gradient_clip: float
    seed: int
    checkpoint_interval: int
    pipeline_schedule: str
    stall_seconds: int
    keep_last: int
    keep_every: int
    from_checkpoint: str
    def __init__(self, dataset: _Optional[str] = ..., output_model: _Optional[str] = ..., architecture: _Optional[_Union[Architecture, _Mapping]] = ..., mesh: _Optional[_Union[Mesh, _Mapping]] = ..., steps: _Optional[int] = ..., batch_size: _Optional[int] = ..., sequence_length: _Optional[int] = ..., microbatches: _Optional[int] = ..., learning_rate: _Optional[float] = ..., warmup_steps: _Optional[int] = ..., weight_decay: _Optional[float] = ..., gradient_clip: _Optional[float] = ..., seed: _Optional[int] = ..., checkpoint_interval: _Optional[int] = ..., pipeline_schedule: _Optional[str] = ..., stall_seconds: _Optional[int] = ..., keep_last: _Optional[int] = ..., keep_every: _Optional[int] = ..., from_checkpoint: _Optional[str] = ...) -> None: ...

class QuantizeSpec(_message.Message):
    __slots__ = ("model", "output_model", "scheme")
    class Scheme(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SCHEME_UNSPECIFIED: _ClassVar[QuantizeSpec.Scheme]
        SCHEME_W8A8_INT8: _ClassVar[QuantizeSpec.Scheme]
    SCHEME_UNSPECIFIED: QuantizeSpec.Scheme
    SCHEME_W8A8_INT8: QuantizeSpec.Scheme
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_MODEL_FIELD_NUMBER: _ClassVar[int]
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    model: str
    output_model: str
    scheme: QuantizeSpec.Scheme
    def __init__(self, model: _Optional[str] = ..., output_model: _Optional[str] = ..., scheme: _Optional[_Union[QuantizeSpec.Scheme, str]] = ...) -> None: ...

class EvaluateSpec(_message.Message):
    __slots__ = ("model", "dataset", "max_tokens", "window", "output_report")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_REPORT_FIELD_NUMBER: _ClassVar[int]
    model: str
    dataset: str
    max_tokens: int
    window: int
    output_report: str
    def __init__(self, model: _Optional[str] = ..., dataset: _Optional[str] = ..., max_tokens: _Optional[int] = ..., window: _Optional[int] = ..., output_report: _Optional[str] = ...) -> None: ...
