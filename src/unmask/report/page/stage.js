// The parts of the film section that are made once: controls, the two panes, the transport, the timeline.

const ICONS = {
    first: "M2 2h2.5v12H2zM14 2v12L5.5 8z",
    back: "M11.5 2v12L3 8z",
    on: "M4.5 2v12L13 8z",
    last: "M11.5 2H14v12h-2.5zM2 2v12l8.5-6z",
    start: "M4 1.5v13L14 8z",
    pause: "M3.5 2h3.2v12H3.5zM9.3 2h3.2v12H9.3z",
    earlier: "M10.5 2L4.5 8l6 6 1.5-1.5L7.5 8 12 3.5z",
    later: "M5.5 2l6 6-6 6L4 12.500 8.500 8 4 3.500z",
};
const icon = (name) =>
    draw(
        "svg",
        { width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true", class: name },
        draw("path", { d: ICONS[name] }),
    );
const iconButton = (label, name, onclick) =>
    el("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick }, icon(name));

const SPEEDS = [
    ["slow", 1400],
    ["normal", 700],
    ["fast", 220],
];

/** What picks run, step of training, prompt and member; its nodes become the section's. */
function makeControls(section) {
    const select = (label, onpick) => {
        const box = el("select", { onchange: () => onpick(Number(box.value)) });
        return { box, node: el("label", { class: "field" }, el("span", { text: label }), box) };
    };
    section.runBox = select("Run", (run) => section.go({ run, film: 0, group: 0, member: 0, k: 0 }));
    section.groupBox = select("Prompt", (group) => section.go({ group, member: 0 }));
    section.stepSlider = el("input", {
        type: "range",
        min: 0,
        step: 1,
        "aria-label": "Step of training",
        oninput: () => section.go({ film: Number(section.stepSlider.value) }),
    });
    section.stepText = el("output", {});
    const step = (by) => section.go({ film: clamp(section.pick.film + by, 0, section.run.films.length - 1) });
    section.memberHost = el("div", { class: "members-pick" });
    section.runs.forEach((run, i) => section.runBox.box.append(el("option", { value: i, text: run.name })));
    section.runBox.node.hidden = section.runs.length < 2;
    return el(
        "div",
        { class: "picks" },
        section.runBox.node,
        el(
            "div",
            { class: "field grow" },
            el("span", {}, "Step of training ", section.stepText),
            el(
                "div",
                { class: "stepper" },
                iconButton("Earlier kept rollout", "earlier", () => step(-1)),
                section.stepSlider,
                iconButton("Later kept rollout", "later", () => step(1)),
            ),
        ),
        section.groupBox.node,
        section.memberHost,
    );
}

/** The stage, the transport and the timeline; its nodes become the section's, and what is drawn into them is the section's affair. */
function makeStage(section) {
    section.timeline = new Timeline((k) => section.go({ k }));
    section.playButton = el(
        "button",
        { type: "button", class: "play", "aria-label": "Play", onclick: () => section.toggle() },
        icon("start"),
        icon("pause"),
        el("span", { class: "word", text: "Play" }),
    );
    section.clock = el("p", { class: "clock" });
    section.viewHost = el("div", {});
    section.mainHost = el("div", { class: "stage-main" });
    section.guessHost = el("div", { class: "stage-guess" });
    section.guessTitle = el("h3", { text: "Its guess at this step" });
    section.guessReward = el("b", { class: "figure" });
    section.guessNote = el("p", { class: "soft" });
    section.facts = el("dl", { class: "facts" });
    section.detail = el("p", { class: "detail" });
    section.fills = el("div", { class: "fills" });
    section.matesHost = el("div", { class: "mates", role: "group", "aria-label": "Group mates at the same step" });
    section.promptText = el("pre", { class: "said", dir: "auto", tabindex: 0, role: "region", "aria-label": "Prompt" });
    section.answerText = el("pre", { class: "said", dir: "auto" });
    section.answerRow = el("div", {}, el("h3", { text: "Known answer" }), section.answerText);
    section.legendEnd = el("span", {});
    const legend = el(
        "div",
        { class: "legend" },
        el("span", { text: "entropy when written: 0" }),
        el("span", { class: "ramp", "aria-hidden": "true" }),
        section.legendEnd,
        el("span", { class: "sign" }, el("i", { class: "sample now", "aria-hidden": "true" }), "written at this step"),
        el("span", { class: "sign" }, el("i", { class: "sample hidden", "aria-hidden": "true", text: HIDDEN }), "still hidden"),
    );
    section.boardLegend = [
        ["clue", "given in the puzzle"],
        ["wrong", "not the answer"],
    ].map(([name, text]) => el("span", { class: "sign" }, el("i", { class: `sample ${name}`, "aria-hidden": "true" }), text));
    section.endLegend = el("span", { class: "sign" }, el("i", { "aria-hidden": "true", text: END }), "end of the text");
    legend.append(...section.boardLegend, section.endLegend);
    const stage = el(
        "div",
        { class: "stage" },
        el(
            "div",
            { class: "pane" },
            el("div", { class: "pane-head" }, el("h3", { text: "What is written" }), section.viewHost),
            section.mainHost,
            legend,
            section.detail,
        ),
        el(
            "div",
            { class: "pane side" },
            el("div", { class: "pane-head" }, section.guessTitle, section.guessReward),
            section.guessHost,
            section.guessNote,
            section.facts,
            section.fills,
        ),
    );
    const transport = el(
        "div",
        { class: "transport", role: "group", "aria-label": "Playing" },
        iconButton("To the first step", "first", () => section.go({ k: 0 })),
        iconButton("One step back", "back", () => section.go({ k: section.pick.k - 1 })),
        section.playButton,
        iconButton("One step on", "on", () => section.go({ k: section.pick.k + 1 })),
        iconButton("To the finished completion", "last", () => section.go({ k: section.film.num_steps })),
        choice(
            "Speed",
            "speed",
            SPEEDS.map(([label, value]) => ({ value, label })),
            section.delay,
            (value) => {
                section.delay = value;
            },
        ),
        section.clock,
    );
    section.body.append(
        el("div", { class: "prompt" }, el("div", {}, el("h3", { text: "Prompt" }), section.promptText), section.answerRow),
        stage,
        transport,
        section.timeline.node,
        el(
            "p",
            { class: "hint" },
            "Keys: ",
            el("kbd", { text: "space" }),
            " plays, ",
            el("kbd", { text: "←" }),
            " ",
            el("kbd", { text: "→" }),
            " step, ",
            el("kbd", { text: "p" }),
            " ",
            el("kbd", { text: "n" }),
            " change the member, ",
            el("kbd", { text: "[" }),
            " ",
            el("kbd", { text: "]" }),
            " the step of training.",
        ),
        el("h3", { text: "Its group, at the same step" }),
        section.matesHost,
    );
    return stage;
}
