// The page: a head with the run and its results, then film, run, comparison and settings.

const data = JSON.parse(document.getElementById("data").textContent);
data.runs.forEach((run, i) => (run.index = i));

function themeChoice() {
    const options = [
        ["auto", "Auto"],
        ["light", "Light"],
        ["dark", "Dark"],
    ].map(([value, label]) => ({ value, label }));
    return choice("Theme", "theme", options, "auto", (theme) => {
        if (theme === "auto") delete document.documentElement.dataset.theme;
        else document.documentElement.dataset.theme = theme;
    });
}

async function head() {
    const [run] = data.runs;
    const isSingle = data.runs.length === 1 && !data.comparisons.length;
    const title =
        isSingle && run.task
            ? `${run.method} on ${run.task}`
            : [...data.runs, ...data.comparisons].map((one) => one.name).join(", ");
    const node = el(
        "header",
        { class: "head" },
        el(
            "div",
            { class: "top" },
            el(
                "p",
                { class: "brand" },
                el(
                    "span",
                    { class: "mark-brand", "aria-hidden": "true" },
                    [0, 1, 2, 3].map((i) => el("i", { class: `b${i}` })),
                ),
                "unmask",
            ),
            themeChoice(),
        ),
        el("h1", { text: title }),
    );
    if (data.runs.length === 1) {
        node.append(
            el("p", {
                class: "sub",
                text: [isSingle ? run.folder : `${run.method} on ${run.task}`, run.model && `from ${run.model}`]
                    .filter(Boolean)
                    .join(", "),
            }),
            el("div", { class: "headlines" }, await headline(run)),
            el(
                "dl",
                { class: "settings" },
                run.settings.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: value }))),
            ),
        );
    } else if (data.runs.length) {
        node.append(
            el(
                "ul",
                { class: "run-list" },
                data.runs.map((one, i) =>
                    el(
                        "li",
                        {},
                        swatch(i),
                        el("b", { text: one.name }),
                        el("span", { class: "soft", text: `${one.method} on ${one.task}` }),
                    ),
                ),
            ),
        );
    }
    const links = [
        ["film", "Film", data.runs.some((r) => r.films.length)],
        ["run", data.runs.length > 1 ? "Runs" : "Run", data.runs.length],
        ...data.comparisons.map((c, i) => [`comparison-${i}`, data.comparisons.length > 1 ? c.name : "Comparison", true]),
        ["settings", "Settings", data.runs.length],
    ];
    return [
        el("a", { class: "skip", href: "#main", text: "To the content" }),
        node,
        el(
            "nav",
            { "aria-label": "Sections" },
            links.filter(([, , is]) => is).map(([id, text]) => el("a", { href: `#${id}`, text })),
        ),
    ];
}

function notes(run) {
    const found = [...run.notes.map((note) => `Left out: ${note}`), ...(run.shown ? [run.shown] : [])];
    return found.map((text) => el("p", { class: "note", text: data.runs.length > 1 ? `${run.name}: ${text}` : text }));
}

async function start() {
    const main = el("main", { id: "main" });
    const withFilm = data.runs.filter((run) => run.films.length);
    const film = withFilm.length ? new FilmSection(withFilm) : null;
    if (film) main.append(film.node);
    main.append(...data.runs.flatMap(notes));
    document.body.append(...(await head()), main);
    if (film) {
        await film.go({ k: 0 });
    }
    if (data.runs.length) main.append(await runSection(data.runs));
    data.comparisons.forEach((comparison, i) => main.append(comparisonSection(comparison, i)));
    if (data.runs.length) main.append(settings(data.runs));
    document.body.append(
        el(
            "footer",
            {},
            el("p", {
                text: `Made by unmask ${data.version} report. This file contains the whole page and loads nothing from a server.`,
            }),
        ),
    );
    document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
    document.body.append(
        el("p", {
            class: "note",
            role: "alert",
            text:
                typeof DecompressionStream === "undefined"
                    ? "This browser cannot unpack the report's data. Use one from 2023 or later."
                    : `The report could not be drawn: ${error.message}`,
        }),
    );
    throw error;
});
