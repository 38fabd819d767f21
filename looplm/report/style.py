"""How the report looks: one style sheet for light and dark screens, from 390 pixels to a desk's."""

from looplm.report.colours import declarations

STYLE = (
    ":root { color-scheme: light dark; "
    + declarations(dark=False)
    + " }\n@media (prefers-color-scheme: dark) { :root { "
    + declarations(dark=True)
    + " } }"
    + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; scroll-padding-top: 1rem; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5; overflow-wrap: break-word;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.25rem 6rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem; overflow-wrap: anywhere; letter-spacing: -.01em; }
h2 { font-size: 1.22rem; line-height: 1.3; margin: 2.5rem 0 .35rem; letter-spacing: -.005em; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .35rem 0 .75rem; max-width: 78ch; }
a { color: var(--link); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
.soft { color: var(--soft); }
.card, figure, details.box { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.card, details.box { padding: .9rem 1rem; }
section > :is(div, figure, .box) + :is(div, figure, .box, p) { margin-top: .9rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1.1rem 0 0; font-size: .9rem; }
.verdicts { list-style: none; margin: 1.1rem 0; padding: 0; display: grid; gap: .45rem; }
.verdicts li { background: var(--card); border: 1px solid var(--line); border-left: 5px solid var(--neutral);
  border-radius: 8px; padding: .55rem .9rem; min-width: 0; }
.verdicts li.good { border-left-color: var(--good); }
.verdicts li.bad { border-left-color: var(--bad); }
header .verdicts li:first-child { font-size: 1.08rem; font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .7rem; margin: 1.1rem 0 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .6rem .9rem; }
.tiles dt { color: var(--soft); font-size: .82rem; }
.tiles dd { margin: 0; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: .9rem;
  align-items: start; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: .9rem; }
.texts > * { min-width: 0; }
.texts h4 { margin: 0 0 .5rem; font-size: .85rem; color: var(--soft); font-weight: 600; }
figure { margin: 0; padding: .8rem .8rem .7rem; min-width: 0; }
figure h3 { margin: 0 0 .35rem; font-size: .92rem; }
figcaption { color: var(--soft); font-size: .84rem; line-height: 1.4; margin: .35rem 0 0; }
svg.plot { display: block; width: 100%; height: auto; overflow: visible; }
svg.plot * { stroke-linejoin: round; }
svg.plot text { font-family: inherit; font-variant-numeric: tabular-nums; }
details.numbers { margin-top: .45rem; font-size: .84rem; }
details.numbers > summary { color: var(--link); font-weight: 400; width: max-content; }
.pair { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .9rem; align-items: start; }
.pair > :last-child { grid-column: span 2; }
.wide { overflow-x: auto; background: linear-gradient(to left, var(--card) 40%, transparent) right / 2.5rem 100% local,
  linear-gradient(to left, rgb(0 0 0 / .14), transparent) right / .8rem 100% scroll; background-repeat: no-repeat; }
.tall .wide { max-height: 24rem; overflow: auto; }
.tall thead th { position: sticky; top: 0; background: var(--card); z-index: 1; }
.tall thead th:first-child { z-index: 2; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
.numbers table { font-size: .8rem; }
.pair table { font-size: .86rem; }
.pair :is(th, td) { padding-inline: .38rem; }
.caption { color: var(--soft); font-size: .84rem; margin: 0 0 .4rem; }
th, td { text-align: right; padding: .3rem .55rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; font-size: .92em; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
.wide th:first-child, .wide td:first-child { position: sticky; left: 0; background: var(--card); }
.plain th:first-child, .plain td:first-child { position: static; }
tr.mark td { font-weight: 650; }
td.good { color: var(--good); }
td.bad { color: var(--bad); }
.plain { width: auto; }
.plain th, .plain td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.plain th:first-child, .plain td:first-child { padding-right: 2rem; }
.leaves td:first-child, .named td:first-child { font-family: ui-monospace, Menlo, Consolas, monospace;
  font-size: .94em; }
pre, .tokens { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  font-size: .82rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; tab-size: 4; }
summary { cursor: pointer; font-weight: 600; }
details.box[open] > summary { margin-bottom: .75rem; }
code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .9em; }
.choice { display: inline-flex; flex-wrap: wrap; gap: .35rem; }
.heat input { position: absolute; opacity: 0; pointer-events: none; }
.heat label { display: inline-block; font-size: .85rem; padding: .2rem .7rem; border: 1px solid var(--line);
  border-radius: 999px; cursor: pointer; margin: 0 .3rem .4rem 0; color: var(--soft); }
.heat input:checked + label { border-color: var(--main); color: var(--ink); font-weight: 600; }
.heat input:focus-visible + label { outline: 2px solid var(--main); outline-offset: 1px; }
.key { display: none; flex-wrap: wrap; align-items: center; gap: .4rem .6rem; margin: .35rem 0 .7rem; font-size: .84rem;
  color: var(--soft); }
.key i { font-style: normal; border-radius: 3px; padding: .05rem .5rem; color: var(--ink); }
.tokens { line-height: 1.85; }
.tokens span { border-radius: 3px; outline: 0; }
.tokens span:hover, .tokens span:focus { box-shadow: 0 0 0 1.5px var(--main); }
.tokens .end::before { content: "\\21b5"; color: var(--soft); opacity: .6; }
.tokens span:hover::after, .tokens span:focus::after { content: attr(data-t); position: fixed; z-index: 9;
  left: max(.75rem, calc(50vw - 570px)); right: max(.75rem, calc(50vw - 570px)); bottom: .75rem; padding: .6rem .9rem;
  background: var(--card); color: var(--ink); border: 1px solid var(--main); border-radius: 10px; font-size: .82rem;
  line-height: 1.5; white-space: pre-wrap; box-shadow: 0 4px 24px rgb(0 0 0 / .25); pointer-events: none; }
#heat-change:checked ~ .key.change, #heat-loss:checked ~ .key.loss, #heat-exit:checked ~ .key.exit { display: flex; }
#heat-change:checked ~ .tokens span, .key.change i { background: rgb(var(--better) / var(--c)); }
#heat-change:checked ~ .tokens .worse, .key.change i.worse { background: rgb(var(--worse) / var(--c)); }
#heat-loss:checked ~ .tokens span, .key.loss i { background: rgb(var(--heat) / var(--l)); }
#heat-exit:checked ~ .tokens span, .key.exit i { background: rgb(var(--heat) / var(--e)); }
.cells { width: auto; font-size: .82rem; margin: 0 0 .2rem; }
.cells td { text-align: center; padding: 0; min-width: 1.5em; height: 1.5em; line-height: 1.4; position: static;
  border: 1px solid var(--line); color: var(--ink); }
.cells .given { color: var(--soft); }
.cells .wrong { background: rgb(var(--worse) / .3); font-weight: 700; text-decoration: underline; }
.cells.small { font-size: .32rem; }
.guesses { display: flex; flex-wrap: wrap; gap: .8rem 1.2rem; }
.guesses > div { min-width: 0; }
.guesses h4 { margin: 0 0 .25rem; font-size: .82rem; color: var(--soft); font-weight: 600; }
footer { margin-top: 3rem; color: var(--soft); font-size: .84rem; }
@media (max-width: 1116px) { .pair { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); }
  .pair > :last-child { grid-column: auto; } }
@media (max-width: 760px) { .pair { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 600px) {
  main { padding: 1.25rem .75rem 6rem; }
  h1 { font-size: 1.4rem; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .card, details.box { padding: .75rem .8rem; }
  figure { padding: .65rem .6rem; }
  .plain th:first-child, .plain td:first-child { padding-right: 1rem; }
}
@media print { .tokens span:hover::after { display: none; } }
"""
)
