"""What a client keeps at Azure: one object of each kind, with the names Azure and OpenAI give its members.

A client's own members replace those of this module; `id` and the ids of its parents come from the path.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = [
    "ASSISTANT",
    "BATCH",
    "CHAT",
    "CHAT_MESSAGE",
    "CHECKPOINT",
    "CONTAINER",
    "CONTAINER_FILE",
    "CONVERSATION",
    "EVAL",
    "EVAL_RUN",
    "FILE",
    "FILE_BATCH",
    "FINE_TUNING_EVENT",
    "FINE_TUNING_JOB",
    "ITEM",
    "MESSAGE",
    "MODEL",
    "NOW",
    "OUTPUT_ITEM",
    "PART",
    "PERMISSION",
    "RUN",
    "SKILL",
    "SKILL_VERSION",
    "STEP",
    "STORED_FILE",
    "THREAD",
    "UPLOAD",
    "VECTOR_STORE",
    "VIDEO",
    "WEBHOOK",
    "Kind",
]

NOW = 1785610058
_COUNTS = {"cancelled": 0, "completed": 1, "failed": 0, "in_progress": 0, "total": 1}


class Kind(NamedTuple):
    prefix: str  # of ids
    value: dict[str, Any]
    deleted: str | None = None  # `object` of the answer to DELETE; None: the kind's own, with `.deleted`


def _kind(prefix: str, object_: str, deleted: str | None = None, **members: Any) -> Kind:
    return Kind(prefix, dict(sorted({"created_at": NOW, "id": "", "object": object_, **members}.items())), deleted)


FILE = _kind("file-", "file", "file", bytes=140, filename="batch.jsonl", purpose="batch", status="processed", status_details=None)
UPLOAD = _kind("upload_", "upload", bytes=140, expires_at=NOW + 3600, filename="batch.jsonl", purpose="batch", status="pending")
PART = _kind("part_", "upload.part", upload_id="")
BATCH = _kind(
    "batch_",
    "batch",
    completion_window="24h",
    endpoint="/chat/completions",
    error_file_id=None,
    errors=None,
    input_file_id="file-1",
    metadata=None,
    output_file_id=None,
    request_counts={"completed": 0, "failed": 0, "total": 0},
    status="validating",
)
VECTOR_STORE = _kind(
    "vs_", "vector_store", file_counts=_COUNTS, last_active_at=NOW, metadata={}, name="", status="completed", usage_bytes=1
)
STORED_FILE = _kind("file-", "vector_store.file", attributes={}, last_error=None, status="completed", usage_bytes=1, vector_store_id="")
FILE_BATCH = _kind("vsfb_", "vector_store.file_batch", file_counts=_COUNTS, status="completed", vector_store_id="")
ASSISTANT = _kind("asst_", "assistant", description=None, instructions=None, metadata={}, model="gpt-4o", name=None, tools=[])
THREAD = _kind("thread_", "thread", metadata={}, tool_resources={})
MESSAGE = _kind(
    "msg_",
    "thread.message",
    assistant_id=None,
    attachments=[],
    completed_at=None,
    content=[{"text": {"annotations": [], "value": "hello"}, "type": "text"}],
    incomplete_at=None,
    incomplete_details=None,
    metadata={},
    role="user",
    run_id=None,
    status="completed",
    thread_id="",
)
RUN = _kind(
    "run_",
    "thread.run",
    assistant_id="asst_1",
    cancelled_at=None,
    completed_at=None,
    expires_at=NOW + 600,
    failed_at=None,
    incomplete_details=None,
    instructions="",
    last_error=None,
    max_completion_tokens=None,
    max_prompt_tokens=None,
    metadata={},
    model="gpt-4o",
    parallel_tool_calls=True,
    required_action=None,
    response_format="auto",
    started_at=None,
    status="queued",
    thread_id="thread_1",
    tool_choice="auto",
    tools=[],
    truncation_strategy={"last_messages": None, "type": "auto"},
    usage=None,
)
STEP = _kind(
    "step_",
    "thread.run.step",
    assistant_id="asst_1",
    cancelled_at=None,
    completed_at=NOW,
    expired_at=None,
    failed_at=None,
    last_error=None,
    metadata={},
    run_id="",
    status="completed",
    step_details={"message_creation": {"message_id": "msg_1"}, "type": "message_creation"},
    thread_id="",
    type="message_creation",
    usage=None,
)
CHAT = Kind(
    "chatcmpl-",
    {
        "choices": [
            {"finish_reason": "stop", "index": 0, "logprobs": None, "message": {"content": "hello", "refusal": None, "role": "assistant"}}
        ],
        "created": NOW,
        "id": "",
        "metadata": {},
        "model": "gpt-4o-2024-11-20",
        "object": "chat.completion",
    },
)
CHAT_MESSAGE = Kind("chatcmpl-", {"content": "hello", "content_parts": None, "id": "", "refusal": None, "role": "assistant"})
FINE_TUNING_JOB = _kind(
    "ftjob-",
    "fine_tuning.job",
    error=None,
    estimated_finish=None,
    fine_tuned_model=None,
    finished_at=None,
    hyperparameters={"batch_size": 1, "learning_rate_multiplier": 1.0, "n_epochs": 3},
    model="gpt-4o-mini-2024-07-18",
    organization_id="",
    result_files=[],
    seed=1,
    status="queued",
    trained_tokens=None,
    training_file="file-1",
    validation_file=None,
)
FINE_TUNING_EVENT = _kind("ftevent-", "fine_tuning.job.event", level="info", message="Job enqueued.", type="message")
CHECKPOINT = _kind(
    "ftckpt-",
    "fine_tuning.job.checkpoint",
    fine_tuned_model_checkpoint="gpt-4o-mini-2024-07-18.ft-1:ckpt-step-10",
    fine_tuning_job_id="",
    metrics={"step": 10.0, "train_loss": 0.5},
    step_number=10,
)
PERMISSION = _kind("cp_", "checkpoint.permission", "checkpoint.permission", project_id="proj_1")
CONTAINER = _kind("cntr_", "container", last_active_at=NOW, name="", status="running")
CONTAINER_FILE = _kind("cfile_", "container.file", bytes=9, container_id="", path="/mnt/data/data.csv", source="user")
CONVERSATION = _kind("conv_", "conversation", metadata={})
ITEM = Kind(
    "msg_",
    {"content": [{"text": "hello", "type": "input_text"}], "id": "", "role": "user", "status": "completed", "type": "message"},
)
EVAL = _kind(
    "eval_",
    "eval",
    data_source_config={"schema": {"type": "object"}, "type": "custom"},
    metadata={},
    name="",
    testing_criteria=[],
)
EVAL_RUN = _kind(
    "evalrun_",
    "eval.run",
    data_source={"source": {"id": "file-1", "type": "file_id"}, "type": "jsonl"},
    error={"code": "", "message": ""},
    eval_id="",
    metadata={},
    model="gpt-4o",
    name="",
    per_model_usage=[],
    per_testing_criteria_results=[],
    report_url="",
    result_counts={"errored": 0, "failed": 0, "passed": 0, "total": 0},
    status="queued",
)
OUTPUT_ITEM = _kind(
    "outputitem_",
    "eval.run.output_item",
    datasource_item={},
    datasource_item_id=0,
    eval_id="",
    results=[{"name": "match", "passed": True, "score": 1.0}],
    run_id="",
    sample={
        "error": {"code": "", "message": ""},
        "finish_reason": "stop",
        "input": [{"content": "hello", "role": "user"}],
        "max_completion_tokens": 16,
        "model": "gpt-4o-2024-11-20",
        "output": [{"content": "hello", "role": "assistant"}],
        "seed": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "usage": {"cached_tokens": 0, "completion_tokens": 1, "prompt_tokens": 1, "total_tokens": 2},
    },
    status="pass",
)
SKILL = _kind("skill_", "skill", default_version="1", description="", latest_version="1", name="skill")
SKILL_VERSION = _kind("skillver_", "skill.version", description="", name="skill", skill_id="", version="1")
VIDEO = _kind(
    "video_",
    "video",
    completed_at=None,
    error=None,
    expires_at=None,
    model="sora-2",
    progress=0,
    prompt="",
    remixed_from_video_id=None,
    seconds="4",
    size="720x1280",
    status="queued",
)
WEBHOOK = _kind(
    "we_", "webhook_endpoint", event_types=["batch.completed"], name="", signing_secret_hint="ab", updated_at=NOW, url="https://example.com"
)
MODEL = Kind("", {"created": NOW, "id": "", "object": "model", "owned_by": "openai"}, "model")
