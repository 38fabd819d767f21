"""The frame of the report: one HTML document without scripts, fonts or pictures from elsewhere.

The content security policy makes the browser enforce that: whatever a text sample holds, nothing runs or is loaded.
"""

from string import Template

STYLE = """
:root { color-scheme: light dark; --page: #f4f6f9; --card: #ffffff; --ink: #1b2330; --soft: #566175; --line: #dfe3ea;
  --good: #19773f; --bad: #b3331a; --neutral: #4b5a72; --link: #2563eb; --depth: 37 99 235; }
@media (prefers-color-scheme: dark) { :root { --page: #12161d; --card: #1b212b; --ink: #e4e8ef; --soft: #a2adbf;
  --line: #323b49; --good: #62d08e; --bad: #ff9177; --neutral: #a9b6ca; --link: #7cb0ff; --depth: 92 148 255; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2rem 1rem 3rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
h3 + pre { margin-bottom: .75rem; }
p { margin: .5rem 0; max-width: 75ch; }
.soft { color: var(--soft); }
.card, figure, details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.card, details { padding: 1rem; }
.verdicts { list-style: none; margin: 1.25rem 0; padding: 0; display: grid; gap: .5rem; }
.verdicts li { background: var(--card); border: 1px solid var(--line); border-left: 5px solid var(--neutral);
  border-radius: 8px; padding: .6rem .9rem; }
.verdicts li.good { border-left-color: var(--good); }
.verdicts li.bad { border-left-color: var(--bad); }
.verdicts li:first-child { font-size: 1.1rem; font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(145px, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem .9rem; }
.tiles dt { color: var(--soft); font-size: .82rem; }
.tiles dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 1rem;
  align-items: start; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); gap: .75rem; }
.texts h4 { margin: 0 0 .4rem; font-size: .85rem; color: var(--soft); }
figure { margin: 0; padding: .75rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .35rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
caption { text-align: left; color: var(--soft); font-size: .85rem; padding-bottom: .4rem; }
th, td { text-align: right; padding: .32rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
tr.mark td { font-weight: 650; }
details .card { border: 0; padding: 0; }
.plain { width: auto; }
.plain th, .plain td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.plain th:first-child, .plain td:first-child { padding-right: 2.5rem; }
.leaves td:first-child { font-family: ui-monospace, Menlo, Consolas, monospace; }
pre, .tokens { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .85rem; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 0; tab-size: 4; }
.tokens { line-height: 1.9; max-height: 32rem; overflow-y: auto; }
.tokens span, .legend span { background: rgb(var(--depth) / var(--a)); border-radius: 3px; }
.legend { display: flex; flex-wrap: wrap; gap: .4rem; margin: 0 0 .75rem; font-size: .85rem; }
.legend span { padding: .1rem .5rem; }
summary { cursor: pointer; font-weight: 600; }
details[open] summary { margin-bottom: .75rem; }
code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .9em; }
footer { margin-top: 2.5rem; color: var(--soft); font-size: .85rem; }
"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header>
<h1>$title</h1>
$summary
</header>
$sections
<footer>Made by looplm. Losses are in nats per token; intervals are 95 % bootstrap intervals over documents.</footer>
</main>
</body>
</html>
""")


def page(title: str, summary: str, sections: list[str]) -> str:
    """Returns the document; `title` is escaped already, like everything else that is given."""
    return PAGE.substitute(title=title, style=STYLE, summary=summary, sections="\n".join(sections))
