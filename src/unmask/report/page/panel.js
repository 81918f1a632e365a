// Texts of the side pane and of the line below the board, about a step, a guess and a token.

/** Return alternating positions and tokens as a map. */
function changed(changes) {
    const other = new Map();
    for (let i = 0; i < changes.length; i += 2) other.set(changes[i], changes[i + 1]);
    return other;
}

/** Return the facts about step k as lists of name, symbol and text. */
function factsOf(film, member, k) {
    const rows = k >= film.num_steps ? factsOfEnd(member) : factsOfStep(member, k);
    if (member.whole !== null) rows.push(["advantage of the completion", "A", number(member.whole, 3, true)]);
    return rows;
}

function factsOfEnd(member) {
    const joint = member.joint.reduce((a, b) => a + b, 0);
    return [
        ["reward", "r", number(member.reward, 3)],
        ["forward passes", "", String(member.forwards)],
        ["entropy of the whole path", "Σ H", `${number(joint, 3)} nats`],
    ];
}

function factsOfStep(member, k) {
    const wrote = member.when.filter((when) => when === k).length;
    const isTrained = member.selected.includes(k);
    let advantage = isTrained && member.whole === null ? "not recorded" : "–";
    if (member.fills[k]) advantage = "of each action, below";
    else if (k in member.advantages) advantage = number(member.advantages[k], 3, true);
    return [
        ["tokens written", "", String(wrote)],
        ["step entropy", "H", wrote ? `${number(member.joint[k], 3)} nats` : "–"],
        ["value of the state", "V", number(member.values[k], 3)],
        ["advantage", "A", advantage],
        ["trained at this step", "", isTrained ? "yes ▲" : "no"],
    ];
}

/** Return the guess to show at step k and its note: the guess of the step, or the last saved one before it. */
function guessAt(film, member, k) {
    if (k >= film.num_steps)
        return {
            title: "Finished completion",
            value: member.reward,
            note: "The tokens of the finished completion, and its reward.",
        };
    const kept = Object.keys(member.guesses).map(Number);
    const title = "One-step guess";
    if (!kept.length)
        return { title, note: "This run saved no one-step guesses. Set log_rollouts_guesses above 0 to save them." };
    const before = kept.filter((step) => step <= k);
    if (!before.length) return { title, note: `Guesses were saved from step k = ${Math.min(...kept)} on.` };
    const at = Math.max(...before);
    const found = { at, value: member.values[at], guess: film.arrays.guesses(member.guesses[at]) };
    if (at === k) {
        const note =
            "All hidden positions are filled at once with their most likely tokens. The reward of this guess is the value V of the state. " +
            "Underlined tokens differ from the finished completion.";
        return { ...found, title, note };
    }
    const note = member.when.includes(k)
        ? "The last guess that was saved before this step."
        : "Nothing was written at this step: the text had already ended.";
    return { ...found, title: `One-step guess at k = ${at}`, note };
}

/** Draw the table of the other actions that were drawn at step k, with their rewards. */
function fillsTable(fills, member, k, textOf) {
    const places = member.when.flatMap((when, i) => (when === k ? [i] : []));
    const texts = (fill) => {
        const other = changed(fill.changes);
        return places.map((i) => spoken(textOf(other.get(i) ?? member.tokens[i]))).join(" ");
    };
    const head = ["tokens", "times", "reward", "advantage in all"].map((text) => el("th", { scope: "col", text }));
    const rows = fills.map((fill) =>
        el(
            "tr",
            {},
            el("td", { class: "mono", text: texts(fill) }),
            el("td", { text: `${fill.times}×` }),
            el("td", { text: number(fill.reward, 3) }),
            el("td", { text: number(fill.advantage, 3, true) }),
        ),
    );
    return el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows));
}

/** Return a sentence about the token at a position after step k. */
function detailOf(film, member, k, i, textOf) {
    const when = member.when[i];
    const isLate = when >= film.num_steps;
    if (isLate ? k < film.num_steps : when > k) return `Position ${i}: still hidden.`;
    const [probability, entropy] = [member.probability[i], member.entropy[i]].map((value) => number(value, 3));
    let how = `written at step ${when + 1} (k = ${when}) with probability ${probability}, entropy ${entropy} nats`;
    if (isLate) how = "filled in after the text had ended";
    else if (when < 0) how = "present from the start";
    return `Position ${i}: “${spoken(textOf(member.tokens[i]))}”, ${how}.`;
}
