"""How the tools of public MCP servers and agent frameworks are read: refused, noted, rendered,
converted back, and with which meaning.

    python -m benchmarks.check_formats /tmp/formats  # all: npm and PyPI, an hour, 9 GB
    python -m benchmarks.check_formats /tmp/formats --only mcp-server-git

Needs Linux, npm and Python's venv. A server is started without a network, asked for its tools over
stdio, and killed. Its list is kept in the folder, so a second run asks no server.
"""

import argparse
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from benchmarks.schema_oracle import differences
from data_utils.chat import chat_template
from data_utils.prompt import render_tags, to_json
from data_utils.tool_formats import flat_tools, openai_tools
from run_utils.arguments import ROOT
from run_utils.files import write_text

SERVERS = {
    "npm": """
        @modelcontextprotocol/server-everything@2026.8.31 @modelcontextprotocol/server-filesystem@2026.8.31
        @modelcontextprotocol/server-memory@2026.8.31 @modelcontextprotocol/server-sequential-thinking@2026.8.31
        @modelcontextprotocol/server-slack@2025.4.25 @modelcontextprotocol/server-github@2025.4.8
        @modelcontextprotocol/server-gitlab@2025.4.25 @modelcontextprotocol/server-google-maps@0.6.2
        @modelcontextprotocol/server-brave-search@0.6.2 @modelcontextprotocol/server-puppeteer@2025.5.12
        @modelcontextprotocol/server-postgres@0.6.2 @playwright/mcp@0.0.83 chrome-devtools-mcp@1.11.0
        @upstash/context7-mcp@4.1.1 @notionhq/notion-mcp-server@2.5.2 @circleci/mcp-server-circleci@0.20.0
        n8n-mcp@2.87.0 mongodb-mcp-server@3.0.4 tavily-mcp@0.2.22 @zereight/mcp-gitlab@2.1.64 firecrawl-mcp@3.26.0
        figma-developer-mcp@0.13.2 @executeautomation/playwright-mcp-server@1.0.12 @winor30/mcp-server-datadog@1.8.0
        @antv/mcp-server-chart@0.9.10 @hubspot/mcp-server@0.4.0 @perplexity-ai/mcp-server@1.2.1 @shortcut/mcp@0.25.0
        @mobilenext/mobile-mcp@1.0.4 @currents/mcp@2.1.1 @brave/brave-search-mcp-server@2.1.4
        @larksuiteoapi/lark-mcp@0.5.1 mcp-server-code-runner@0.1.8 @aashari/mcp-server-atlassian-jira@3.3.0
        @browsermcp/mcp@0.1.3 exa-mcp-server@3.4.1 backlog-mcp-server@0.20.4 @shopify/dev-mcp@1.16.0
        @softeria/ms-365-mcp-server@0.155.0 @mondaydotcomorg/monday-api-mcp@3.3.0 @mapbox/mcp-server@0.14.0
        argocd-mcp@0.9.0 mcp-mermaid@0.4.1 @amap/amap-maps-mcp-server@0.0.8
        @openbnb/mcp-server-airbnb@0.3.0 @cyanheads/git-mcp-server@2.15.3 @pinecone-database/mcp@0.3.0
        @postman/postman-mcp-server@2.13.0 @line/line-bot-mcp-server@0.5.0 @wonderwhy-er/desktop-commander@0.2.52
        @sentry/mcp-server@0.39.0
    """.split(),
    "pypi": """
        mcp-server-fetch==2026.10.24 mcp-server-git==2026.10.19 mcp-server-time==2026.10.19
        duckduckgo-mcp-server==0.7.0 arxiv-mcp-server==0.8.2 mcp-atlassian==0.23.1 wikipedia-mcp==2.0.1
        excel-mcp-server==2.2.2 office-word-mcp-server==1.1.11
        awslabs.aws-documentation-mcp-server==1.2.3 awslabs.dynamodb-mcp-server==2.1.8 blender-mcp==2.0.0
        mcp-server-calculator==0.2.1 mcp-clickhouse==0.7.0 redis-mcp-server==0.5.1
        mcp-neo4j-cypher==0.6.0
    """.split(),
}
ARGUMENTS = {  # of a server's command
    "@modelcontextprotocol/server-everything": "stdio",
    "@modelcontextprotocol/server-filesystem": ".",
    "@modelcontextprotocol/server-postgres": "postgresql://localhost/db",
    "figma-developer-mcp": "--stdio",
    "@larksuiteoapi/lark-mcp": "mcp -a dummy -s dummy",
    "@mondaydotcomorg/monday-api-mcp": "-t dummy",
    "argocd-mcp": "stdio",
    "@sentry/mcp-server": "--access-token=dummy",
    "excel-mcp-server": "stdio",
}
FRAMEWORKS = {  # asked by framework_tools.py and framework_tools.mjs
    "pypi": """
        agno==3.1.10 autogen-core==0.7.5 crewai==1.15.30 fastmcp==4.1.6 google-adk==2.13.0 google-genai==3.3.0
        haystack-ai==3.4.1 instructor==1.17.0 langchain-core==1.8.1 llama-index-core==0.14.25 mcp==2.3.0
        openai-agents==0.24.0 pydantic-ai-slim==2.68.0 semantic-kernel==1.45.0 smolagents==1.26.0 strands-agents==1.62.0
    """.split(),
    "npm": """
        zod@4.6.7 zod-to-json-schema@3.25.2 @modelcontextprotocol/sdk@1.32.2 ai@7.0.173 @openai/agents@0.20.0
        @langchain/core@1.4.0
    """.split(),
}
BESIDE = {  # installed with a framework
    "smolagents": "pydantic==2.14.4", "zod-to-json-schema": "zod@3.25.76", "@modelcontextprotocol/sdk": "zod@4.6.7",
    "ai": "zod@4.6.7", "@openai/agents": "zod@4.6.7", "@langchain/core": "zod@4.6.7",
}  # fmt: skip
# Servers only check for these: none is asked for more than its tools.
DUMMIES = """ACCESS_TOKEN AMAP_MAPS_API_KEY APIFY_TOKEN ARGOCD_API_TOKEN ATLASSIAN_API_TOKEN BACKLOG_API_KEY BRAVE_API_KEY
CHANNEL_ACCESS_TOKEN CIRCLECI_TOKEN CURRENTS_API_KEY DATADOG_API_KEY DATADOG_APP_KEY EXA_API_KEY FIGMA_API_KEY FIRECRAWL_API_KEY
GITHUB_PERSONAL_ACCESS_TOKEN GITLAB_PERSONAL_ACCESS_TOKEN GOOGLE_MAPS_API_KEY HEROKU_API_KEY JIRA_API_TOKEN NOTION_TOKEN
PERPLEXITY_API_KEY PINECONE_API_KEY POSTMAN_API_KEY PRIVATE_APP_ACCESS_TOKEN SHORTCUT_API_TOKEN SLACK_BOT_TOKEN SLACK_TEAM_ID
TAVILY_API_KEY CLICKHOUSE_USER CLICKHOUSE_PASSWORD JIRA_USERNAME CONFLUENCE_USERNAME CONFLUENCE_API_TOKEN MYSQL_USER MYSQL_PASS
MYSQL_DB""".split()
ENVIRONMENT = dict.fromkeys(DUMMIES, "dummy") | {
    "BACKLOG_DOMAIN": "localhost", "ARGOCD_BASE_URL": "http://localhost", "CLICKHOUSE_HOST": "localhost", "MYSQL_HOST": "localhost",
    "JIRA_URL": "http://localhost", "CONFLUENCE_URL": "http://localhost", "NEO4J_URI": "bolt://localhost",
    "MAPBOX_ACCESS_TOKEN": "pk.eyJ1IjoiZHVtbXkifQ.dummy", "JIRA_API_BASE_PATH": "http://localhost/rest", "JIRA_HOST": "localhost",
    "npm_config_update_notifier": "false", "NO_UPDATE_NOTIFIER": "1", "DO_NOT_TRACK": "1",
}  # fmt: skip
SECONDS = 90  # timeout of a server's answer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for what is installed, and the tools that were listed")
    parser.add_argument("--only", nargs="*", default=[""], metavar="NAME", help="packages whose pin begins so")
    parser.add_argument(
        "--values",
        type=int,
        default=40,
        help="arguments drawn for each tool from each of its schemas, to compare their meaning",
    )
    args = parser.parse_args()
    folder, totals = args.folder.resolve(), {}
    # As export.py writes it.
    template = chat_template(AutoTokenizer.from_pretrained(ROOT / "demo" / "base"), "tags-1")
    for kind, pins in (("servers", SERVERS), ("frameworks", FRAMEWORKS)):
        chosen = [(registry, pin) for registry in pins for pin in pins[registry] if pin.startswith(tuple(args.only))]
        findings, answered = Counter(), 0
        for number, (registry, pin) in enumerate(chosen, start=1):
            place = f"[{number}/{len(chosen)}] {pin}"
            try:
                tools = kept_tools(folder, registry, pin)
            except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
                print(f"{place}: no tools: {' '.join(str(error).split())[-300:]}", flush=True)
                continue
            answered += 1
            found = sum((check_tool(tool, template, args.values) for tool in tools), Counter())
            print(f"{place}: {', '.join(f'{count} {name}' for name, count in found.items())}", flush=True)
            findings += found
        totals[f"{answered} {kind}"] = findings
    for title, findings in totals.items():
        print(f"\n{title}")
        for name, count in findings.items():
            print(f"  {count:>6}  {name}")


def check_tool(tool, template, values):
    """Counts of one tool, by name: whether it is read, and whether prompt, round trip and meaning
    agree. Prints a line for each difference."""
    found = Counter({"tools": 1})

    def difference(name, sentence):
        found[name] += 1
        print(f"  {name}: {sentence}", flush=True)

    try:
        read = flat_tools([tool])
    except ValueError as error:
        place, _, reason = str(error).rpartition(": ")
        difference(f"refused: {reason}", place)
        return found
    found["read"] += 1
    found["with a note"] += bool(read.notes)
    (flat,) = read.tools
    prompt = render_tags("q", to_json(read.tools))
    found["with the template's prompt equal"] += (
        chat_prompt([tool], template) == prompt == chat_prompt(openai_tools(read.tools), template)
    )
    found["given back equal"] += to_json(flat_tools(openai_tools(read.tools)).tools) == to_json(read.tools)
    if read.notes:  # of a recursive schema, the flat form accepts more below its cut
        return found
    changed = differences(arguments_schema(tool), values)
    found["drawn arguments compared"] += 2 * values
    if changed:
        value, by_original, _ = changed[0]
        difference(
            "changed in meaning",
            f"{flat['name']}: only its {'own schema' if by_original else 'flat form'} takes {to_json(value)[:200]}",
        )
    return found


def arguments_schema(tool):
    """A tool's own JSON Schema of its arguments, in the formats of these servers and frameworks."""
    tool = tool.get("function", tool)
    keys = ("parameters", "inputSchema", "parameters_json_schema")
    schema = next((tool[key] for key in keys if tool.get(key) is not None), {})
    return schema.get("json", schema)  # Bedrock's


def chat_prompt(tools, template):
    """The chat template's prompt for unchanged tools, or its error."""
    try:
        ((prompt,), _) = render_jinja_template(
            [[{"role": "user", "content": "q"}]], tools=tools, chat_template=template, add_generation_prompt=True
        )
    except TemplateError as error:
        return f"{type(error).__name__}: {error}"
    return prompt


def kept_tools(folder, registry, pin):
    """A server's or a framework's tools, from the folder if they were listed
    before."""
    name = re.sub(r"\W+", "_", pin).strip("_")
    kept = folder / "tools" / f"{name}.json"
    if not kept.exists():
        package, installed = re.match("(.[^@=]*)", pin)[1], folder / registry / name
        if pin in FRAMEWORKS[registry]:
            install(installed, registry, package, [pin, *BESIDE.get(package, "").split()])
            tools = framework_tools(installed, registry, package)
        else:
            command = install(installed, registry, package, [pin])
            tools = list_tools([*command, *ARGUMENTS.get(package, "").split()], folder / "home")
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(tools, indent=1))
    return json.loads(kept.read_text())


def install(folder, registry, package, pins):
    """Install pinned packages with their dependencies into a separate folder. Returns the command
    that starts the package, if any."""
    done, python = folder / "installed", folder / "bin" / "python"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if registry == "npm":
            quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            call(["npm", "install", "--prefix", folder, *quiet, *pins])
        else:
            call([sys.executable, "-m", "venv", "--without-pip", "--clear", folder])
            call([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-input", *pins])
        done.touch()
    if registry == "npm":
        root = folder / "node_modules" / package
        commands = json.loads((root / "package.json").read_text()).get("bin", {})
        first = [commands] if isinstance(commands, str) else list(commands.values())[:1]
        return ["node", *(root / path for path in first)]
    code = (
        "import sys, importlib.metadata as m\n"
        "print(*(e.name for e in m.distribution(sys.argv[1]).entry_points if e.group == 'console_scripts'))"
    )
    return [folder / "bin" / name for name in call([python, "-c", code, package]).split()[:1]]


def framework_tools(folder, registry, package):
    """A framework's tools, by framework_tools.py or its JavaScript twin. Prints a line
    for each refused function."""
    script = Path(__file__).with_name(f"framework_tools.{'mjs' if registry == 'npm' else 'py'}")
    shutil.copy(script, folder)  # node looks for packages beside the script
    made = json.loads(
        call(["node" if registry == "npm" else folder / "bin" / "python", folder / script.name, package]).splitlines()[
            -1
        ]
    )
    for name, reason in made["refused"].items():
        print(f"  {package} itself does not read {name}: {reason}", flush=True)
    return list(made["tools"].values())


def call(command):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=1200
    )
    if done.returncode:
        raise OSError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def list_tools(command, home):
    """The tools of the MCP server that a command starts. The server has no network except loopback,
    and is ended with all its children."""
    home.mkdir(parents=True, exist_ok=True)
    alone = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    shell = ["sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **ENVIRONMENT}
    with (home / "stderr").open("wb") as errors:
        server = subprocess.Popen(
            [*alone, *shell, *map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=home,
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            hello = {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": {"name": "check", "version": "1"},
            }
            ask(server, 1, "initialize", hello)
            send(server, {"method": "notifications/initialized"})
            tools, cursor = [], {}
            while cursor is not None:
                page = ask(server, 2 + len(tools), "tools/list", cursor)
                tools += page["tools"]
                cursor = {"cursor": page["nextCursor"]} if page.get("nextCursor") else None
            return tools
        except OSError as error:
            raise OSError(f"{error}; {(home / 'stderr').read_text(errors='replace').strip()[-300:]}") from None
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            server.stdout.close()


def send(server, message):
    server.stdin.write(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n")
    server.stdin.flush()


def ask(server, number, method, params):
    send(server, {"id": number, "method": method, "params": params})
    deadline, pending = time.monotonic() + SECONDS, b""
    while True:
        ready, _, _ = select.select([server.stdout], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise OSError(f"no answer to {method}")
        chunk = os.read(server.stdout.fileno(), 1 << 20)
        if not chunk:
            raise OSError("it ended")
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:  # a greeting
                continue
            if isinstance(message, dict) and message.get("id") == number and "method" not in message:
                if "error" in message:
                    raise OSError(f"{method}: {message['error']}")
                return message["result"]


if __name__ == "__main__":
    main()
