// A comparison: accuracy against training compute and against denoising steps, with intervals over seeds, and the table.

/** Return a mean with its interval as text; an interval that was cut to the range of the quantity is given by its ends. */
function mean([value, half, low, high], signed = false) {
    const text = number(value, 3, signed);
    if (half === null || half === undefined) return text;
    const isCut = low > value - half + 2e-6 || high < value + half - 2e-6;
    return isCut ? `${text} (${number(low, 3, signed)} to ${number(high, 3, signed)})` : `${text} ± ${number(half, 3)}`;
}
/** Return a difference with its interval as text, with a mark if it stays significant after the correction. */
const difference = (d, t) => mean(d.by[t], true) + (d.marked.includes(t) ? " *" : "");
const temperatureName = (t) => (Number(t) === 0 ? "greedy" : `sampled at ${t}`);
const withBand = ([x, value, half, low, high]) => (half === null || half === undefined ? [x, value] : [x, value, low, high]);

function comparisonSection(comparison, number_) {
    const id = `comparison-${number_}`;
    const node = el(
        "section",
        { id, "aria-labelledby": `${id}-title` },
        el("h2", { id: `${id}-title`, text: `The comparison ${comparison.name}` }),
        el("p", { class: "lead", text: comparison.caption }),
        comparison.warnings.map((text) => el("p", { class: "lead", text })),
    );
    let temperature = comparison.temperatures[0];
    const host = el("div", {});
    const styleOf = (name) => comparison.methods.indexOf(name);
    function render() {
        host.replaceChildren(
            ...comparison.tasks.map((task) =>
                el(
                    "section",
                    { class: "task", "aria-label": task.name },
                    el("h3", { text: task.name }),
                    el("p", { class: "soft", text: `Budget: ${task.text.budget} token passes.` }),
                    el(
                        "div",
                        { class: "charts wide" },
                        lineChart({
                            title: `Accuracy against compute, ${temperatureName(temperature)}`,
                            note: "evaluations during the runs",
                            isShare: true,
                            height: 250,
                            dots: true,
                            xLabel: "token passes",
                            series: task.methods
                                .filter((m) => m.curve[temperature]?.length)
                                .map((m) => ({
                                    name: m.name,
                                    style: styleOf(m.name),
                                    points: m.curve[temperature].map(withBand),
                                })),
                        }),
                        task.methods.some((m) => m.decoding.length > 1)
                            ? lineChart({
                                  title: "Accuracy against denoising steps, greedy",
                                  note: "finished models",
                                  isShare: true,
                                  height: 250,
                                  dots: true,
                                  xLabel: "denoising steps",
                                  isMarked: true,
                                  series: task.methods.map((m) => ({
                                      name: m.name,
                                      style: styleOf(m.name),
                                      points: m.decoding.map(withBand),
                                  })),
                              })
                            : null,
                    ),
                    table(task),
                ),
            ),
        );
    }
    function table(task) {
        const rows = [...task.methods].sort((a, b) => b.accuracy[temperature][0] - a.accuracy[temperature][0]);
        // The results come first, because a phone shows only the first columns without scrolling.
        const columns = [
            "method",
            ...comparison.temperatures.map(temperatureName),
            "interval",
            "prompts × completions",
            "seeds",
            "token passes",
            "reward calls",
        ];
        const strip = ([value, , low, high]) =>
            el(
                "span",
                {
                    class: "strip",
                    "aria-hidden": "true",
                    vars: {
                        "--low": low ?? value,
                        "--high": high ?? value,
                        "--mid": value,
                    },
                },
                el("i", {}),
                el("b", {}),
            );
        return el(
            "div",
            { class: "scroll", tabindex: 0, role: "region", "aria-label": `Table of ${task.name}` },
            el(
                "table",
                { class: "wide" },
                el("caption", { text: "Mean ± half the width of the 95 % interval over seeds" }),
                el(
                    "thead",
                    {},
                    el(
                        "tr",
                        {},
                        columns.map((text) => el("th", { scope: "col", text })),
                    ),
                ),
                el(
                    "tbody",
                    {},
                    rows.map((m) =>
                        el(
                            "tr",
                            {},
                            el("th", { scope: "row", text: m.edited ? `${m.name} †` : m.name }),
                            comparison.temperatures.map((t) =>
                                el("td", {
                                    // Bold is a mean that is certainly the best of its column.
                                    class: m.name === task.best[t] ? "best" : null,
                                    text: m.accuracy[t] ? mean(m.accuracy[t]) : "–",
                                }),
                            ),
                            el("td", {}, strip(m.accuracy[temperature])),
                            el("td", { text: m.shape.replace("x", "×") || "–" }),
                            el("td", { text: String(m.seeds) }),
                            el("td", { text: m.text.passes }),
                            el("td", { text: m.text.calls }),
                        ),
                    ),
                ),
                task.differences.length
                    ? el(
                          "tbody",
                          {},
                          el(
                              "tr",
                              {},
                              el("th", { colspan: columns.length, scope: "rowgroup", text: "Differences, paired by seed" }),
                          ),
                          task.differences.map((d) =>
                              el(
                                  "tr",
                                  {},
                                  el("th", { scope: "row", text: d.name }),
                                  comparison.temperatures.map((t) => el("td", { text: d.by[t] ? difference(d, t) : "–" })),
                                  el("td", { colspan: columns.length - 1 - comparison.temperatures.length }),
                              ),
                          ),
                      )
                    : null,
            ),
        );
    }
    if (comparison.temperatures.length > 1)
        node.append(
            choice(
                "Sampling",
                `${id}-temperature`,
                comparison.temperatures.map((t) => ({ value: t, label: temperatureName(t) })),
                temperature,
                (t) => {
                    temperature = t;
                    render();
                },
            ),
        );
    node.append(host);
    if (comparison.failed.length)
        node.append(
            el("h3", { text: "Failed" }),
            el(
                "ul",
                {},
                comparison.failed.map((text) => el("li", { text })),
            ),
        );
    render();
    return node;
}
