"""A ReAct agent of LangGraph, over ChatOpenAI and ChatAnthropic."""

import asyncio

from langchain_core.tools import StructuredTool, ToolException
from tools import QUESTION, STREAMED, TOOLS, URL, WAY


def guarded(function):
    def run(**arguments):
        try:
            return function(**arguments)
        except ValueError as error:
            raise ToolException(str(error)) from error

    made = StructuredTool.from_function(function, handle_tool_error=True)
    made.func = run
    return made


def model():
    if WAY == "messages":
        from langchain_anthropic import ChatAnthropic

        base = URL.removesuffix("/v1")
        return ChatAnthropic(model="claude-x", base_url=base, api_key="unused", max_retries=0, max_tokens=500)
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="gpt-x", base_url=URL, api_key="unused", max_retries=0, stream_usage=True)


try:
    from langchain.agents import create_agent
except ImportError:
    from langgraph.prebuilt import create_react_agent as create_agent

agent = create_agent(model(), tools=[guarded(function) for function in TOOLS.values()])
asked = {"messages": [{"role": "user", "content": QUESTION}]}


async def main() -> None:
    if not STREAMED:
        print((await agent.ainvoke(asked))["messages"][-1].text)
        return
    said = ""
    async for message, _ in agent.astream(asked, stream_mode="messages"):
        if message.type in ("ai", "AIMessageChunk"):
            said += str(message.text)
    print(said)


asyncio.run(main())
