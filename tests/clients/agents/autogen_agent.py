"""AutoGen's assistant agent."""

import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import TaskResult
from autogen_ext.models.openai import OpenAIChatCompletionClient
from tools import QUESTION, STREAMED, TOOLS, URL

known = {"vision": False, "function_calling": True, "json_output": True, "family": "unknown", "structured_output": True}
client = OpenAIChatCompletionClient(model="gpt-x", base_url=URL, api_key="unused", max_retries=0, model_info=known)
agent = AssistantAgent(
    "weather",
    model_client=client,
    tools=list(TOOLS.values()),
    max_tool_iterations=6,
    model_client_stream=STREAMED,
)


async def main() -> None:
    result = None
    async for event in agent.run_stream(task=QUESTION):
        if isinstance(event, TaskResult):
            result = event
    print(result.messages[-1].content)


asyncio.run(main())
