// A completion drawn token by token as a board, code, text or a grid, at one step of its path or as a guess.

const HIDDEN = "·";
const END = "∎";
const NATS = 2e-4; // unit of the film's entropies
const BRIEF = 48; // maximum number of tokens of a text in large type

/** Return a token in words: its text, or its meaning. */
function spoken(text) {
    if (text === "") return "nothing";
    if (text === " ") return "space";
    return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥");
}

/**
 * A completion on the page.
 * kind: "board", "code", "text" or "tokens"; label: what a screen reader calls it; size: "big" or "small".
 */
class Tokens {
    constructor({ film, layout, member, kind, size, label, scale, answer, onlook }) {
        Object.assign(this, { film, layout, member, kind, size, scale, answer, onlook });
        const isBoard = kind === "board";
        const brief = size === "big" && member.tokens.length <= BRIEF ? "brief" : "";
        this.node = el("div", {
            class: `tokens ${isBoard ? "board" : kind} ${size} ${brief}`,
            role: "group",
            "aria-label": label,
            vars: isBoard ? { "--columns": layout.columns } : {},
        });
        this.cells = member.tokens.map((token, i) => this.cell(token, i));
        this.node.append(...this.cells.map((cell) => cell.node));
        if (onlook) this.node.addEventListener("keydown", (event) => this.walk(event));
        this.end = member.tokens.indexOf(film.eos);
    }

    text(token) {
        return token === this.film.eos ? END : (this.film.pieces[token] ?? `#${token}`);
    }

    cell(token, i) {
        const text = el("span", { class: "word" });
        const isProse = this.kind === "code" || this.kind === "text";
        const events = { onfocus: () => this.onlook(i), onpointerenter: () => this.onlook(i) };
        const common = { class: "token", "data-i": i };
        // A button is a box in which lines break separately; in prose, a token must flow with its line.
        const own = isProse ? { role: "button" } : { type: "button" };
        const node = this.onlook
            ? el(isProse ? "span" : "button", { ...common, ...own, ...events, tabindex: i ? -1 : 0 })
            : el("span", common);
        if (this.kind === "board" && this.layout.clues[i]) node.classList.add("clue");
        if (this.kind === "board") {
            const [row, column] = [Math.floor(i / this.layout.columns), i % this.layout.columns];
            if (column && column % this.layout.box === 0) node.classList.add("box-left");
            if (row && row % this.layout.box === 0) node.classList.add("box-top");
        } else if (this.kind !== "tokens") {
            // A hidden token is as wide as its final text, so that lines do not jump while the film plays.
            node.style.setProperty("--width", clamp(this.text(token).replace(/\n/g, "").length, 1, 24));
        }
        const note = this.size === "big" && this.kind === "board" ? el("span", { class: "nats", "aria-hidden": "true" }) : null;
        node.append(text, ...(note ? [note] : []));
        return { node, text, note };
    }

    /** Show the state of step k: earlier tokens, the tokens of this step outlined, the rest hidden. After the last step, show all. */
    show(k) {
        const { member, film } = this;
        member.tokens.forEach((token, i) => {
            const when = member.when[i];
            const isLate = when >= film.num_steps;
            const isShown = isLate ? k >= film.num_steps : when <= k;
            this.put(i, isShown ? token : null, {
                isNow: isShown && when === k,
                entropy: isLate || when < 0 ? 0 : member.entropy[i],
            });
        });
    }

    /** Show a guess at step k: for each position a token, or the mark for the final token. */
    guess(tokens, k) {
        const { member } = this;
        const same = tokens instanceof Uint16Array ? 0xffff : 0x7fffffff;
        member.tokens.forEach((token, i) => {
            const isOther = tokens[i] !== same;
            this.put(i, isOther ? tokens[i] : token, { isGuess: member.when[i] >= k, isOther, entropy: 0 });
        });
    }

    put(i, token, { isNow = false, isGuess = false, isOther = false, entropy = 0 }) {
        const { node, text, note } = this.cells[i];
        const isHidden = token === null;
        const share = clamp(entropy / this.scale, 0, 1);
        node.dataset.state = isHidden ? "hidden" : isNow ? "now" : isGuess ? "guess" : "written";
        node.classList.toggle("other", isOther);
        // The text changes between dark and light where the colour ramp passes its lightness, earlier on a dark page.
        node.classList.toggle("middle-deep", !isHidden && share > 0.49);
        node.classList.toggle("deep", !isHidden && share > 0.66);
        node.style.setProperty("--t", isHidden ? 0 : share.toFixed(3));
        const piece = isHidden ? HIDDEN : this.text(token);
        const isProse = this.kind === "code" || this.kind === "text";
        text.textContent = isProse ? piece.replace(/\n/g, "⏎\n") : spoken(piece);
        node.classList.toggle("after", this.end >= 0 && i > this.end);
        const isWrong = this.kind === "board" && this.answer && !isHidden && piece !== this.answer[i];
        node.classList.toggle("wrong", Boolean(isWrong));
        if (note) note.textContent = isHidden || share === 0 ? "" : number(entropy, 2);
        if (this.onlook) {
            const what = isHidden
                ? "hidden"
                : `${spoken(piece)}, ${isNow ? "written now, " : ""}entropy ${number(entropy, 2)} nats${isWrong ? ", not the answer" : ""}`;
            node.setAttribute("aria-label", `Position ${i}: ${what}`);
        }
    }

    walk(event) {
        const i = Number(event.target.dataset?.i);
        if (Number.isNaN(i)) return;
        const across =
            this.kind === "board"
                ? this.layout.columns
                : Math.max(1, this.cells.filter((c) => c.node.offsetTop === this.cells[i].node.offsetTop).length);
        const moves = {
            ArrowLeft: i - 1,
            ArrowRight: i + 1,
            ArrowUp: i - across,
            ArrowDown: i + across,
            Home: 0,
            End: this.cells.length - 1,
        };
        if (!(event.key in moves)) return;
        event.preventDefault();
        event.stopPropagation();
        const next = this.cells[clamp(moves[event.key], 0, this.cells.length - 1)].node;
        this.cells[i].node.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
    }
}
