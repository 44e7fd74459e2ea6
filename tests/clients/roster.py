"""The clients that are tried: what to install, the script that runs the agent, and the dialect that must be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Client:
    """One client library, or one of its ways to talk to a model."""

    name: str
    """As it stands in the table, and the folder of its environment."""
    packages: tuple[str, ...]
    """What to install; the first is the one whose version is told."""
    script: str
    """Below `agents/`."""
    dialect: str
    argument: str = ""
    """Tells scripts that know several ways which one is meant."""
    kind: Literal["pip", "npm"] = "pip"
    environment: str = ""
    """Folder of the environment, where several clients share one."""


CLIENTS = (
    Client("openai, chat", ("openai",), "openai_sdk.py", "chat_completions", "chat", environment="openai"),
    Client("openai, responses", ("openai",), "openai_sdk.py", "responses", "responses", environment="openai"),
    Client("anthropic", ("anthropic",), "anthropic_sdk.py", "messages"),
    # It asks for tools only with mcp beside it.
    Client("litellm", ("litellm", "mcp"), "litellm_sdk.py", "chat_completions"),
    Client(
        "pydantic-ai, chat",
        ("pydantic-ai-slim", "pydantic-ai-slim[openai,anthropic]"),
        "pydantic_ai_agent.py",
        "chat_completions",
        "chat",
        environment="pydantic-ai",
    ),
    Client(
        "pydantic-ai, responses",
        ("pydantic-ai-slim", "pydantic-ai-slim[openai,anthropic]"),
        "pydantic_ai_agent.py",
        "responses",
        "responses",
        environment="pydantic-ai",
    ),
    Client(
        "pydantic-ai, messages",
        ("pydantic-ai-slim", "pydantic-ai-slim[openai,anthropic]"),
        "pydantic_ai_agent.py",
        "messages",
        "messages",
        environment="pydantic-ai",
    ),
    Client(
        "langgraph, chat",
        ("langgraph", "langchain", "langchain-openai", "langchain-anthropic"),
        "langgraph_agent.py",
        "chat_completions",
        "chat",
        environment="langgraph",
    ),
    Client(
        "langgraph, messages",
        ("langgraph", "langchain", "langchain-openai", "langchain-anthropic"),
        "langgraph_agent.py",
        "messages",
        "messages",
        environment="langgraph",
    ),
    Client(
        "openai-agents, responses",
        ("openai-agents",),
        "openai_agents.py",
        "responses",
        "responses",
        environment="openai-agents",
    ),
    Client(
        "openai-agents, chat",
        ("openai-agents",),
        "openai_agents.py",
        "chat_completions",
        "chat",
        environment="openai-agents",
    ),
    Client(
        "llama-index", ("llama-index-core", "llama-index-llms-openai-like"), "llama_index_agent.py", "chat_completions"
    ),
    Client("smolagents", ("smolagents", "smolagents[openai]"), "smolagents_agent.py", "chat_completions"),
    Client("autogen-agentchat", ("autogen-agentchat", "autogen-ext[openai]"), "autogen_agent.py", "chat_completions"),
    Client("crewai", ("crewai",), "crewai_agent.py", "chat_completions"),
    Client("npm openai, chat", ("openai",), "openai_sdk.mjs", "chat_completions", "chat", "npm", "npm-openai"),
    Client("npm openai, responses", ("openai",), "openai_sdk.mjs", "responses", "responses", "npm", "npm-openai"),
    Client(
        "Vercel AI SDK, chat",
        ("ai", "@ai-sdk/openai", "@ai-sdk/anthropic", "zod"),
        "ai_sdk.mjs",
        "chat_completions",
        "chat",
        "npm",
        "npm-ai",
    ),
    Client(
        "Vercel AI SDK, responses",
        ("ai", "@ai-sdk/openai", "@ai-sdk/anthropic", "zod"),
        "ai_sdk.mjs",
        "responses",
        "responses",
        "npm",
        "npm-ai",
    ),
    Client(
        "Vercel AI SDK, messages",
        ("ai", "@ai-sdk/openai", "@ai-sdk/anthropic", "zod"),
        "ai_sdk.mjs",
        "messages",
        "messages",
        "npm",
        "npm-ai",
    ),
)
