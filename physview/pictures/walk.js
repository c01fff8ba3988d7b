// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The page of a drawn walk. It has a finished drawing of each walk, with a group of shapes for each
 * step. The script shows one drawing, and dims the steps that are still to come.
 */

/**
 * @typedef {{label: string, vaddr: string, svg: string, steps: string[], paddr: string}} DrawnWalk
 * @typedef {{walks: DrawnWalk[], asked: number, hint: string, remedy: string}} WalkData
 */

/**
 * @param {string} base64
 * @returns {Promise<WalkData>}
 */
async function unpackWalks(base64) {
	const packed = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
	const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
	return JSON.parse(await new Response(stream).text());
}

/** @param {string} id */
function walkPart(id) {
	return document.getElementById(id);
}

class WalkPage {
	/** @param {WalkData} data */
	constructor(data) {
		this.data = data;
		this.walks = data.walks;
		this.chosen = 0;
		this.step = 0;
		this.search = /** @type {HTMLInputElement} */ (walkPart("search"));
		this.buttons = this.walks.map((walk, i) => this.makeButton(walk, i));
		this.fillList();
		walkPart("back").addEventListener("click", () => this.go(this.step - 1));
		walkPart("next").addEventListener("click", () => this.go(this.step + 1));
		walkPart("whole").addEventListener("click", () => this.go(0));
		walkPart("bar").addEventListener("submit", (event) => {
			event.preventDefault();
			this.find(this.search.value.trim());
		});
		walkPart("stage").addEventListener("click", (event) => {
			const part = /** @type {Element} */ (event.target).closest("g[data-step]");
			if (part && part.getAttribute("data-step") !== "0")
				this.go(Number(part.getAttribute("data-step")));
		});
		document.addEventListener("keydown", (event) => this.press(event));
		this.choose(data.asked);
	}

	/**
	 * @param {DrawnWalk} walk
	 * @param {number} i
	 */
	makeButton(walk, i) {
		const button = document.createElement("button");
		button.type = "button";
		button.title = `${walk.vaddr} -> ${walk.paddr || "no page"}`;
		button.classList.toggle("none", !walk.paddr);
		button.addEventListener("click", () => this.choose(i));
		return button;
	}

	/* "buf[00]", "buf[01]", … are a row of numbers of their own, with "buf" before it. */
	fillList() {
		const list = walkPart("addresses");
		let before = "";
		this.walks.forEach((walk, i) => {
			const [, name, number] = /^(.+)\[(\d\d)\]$/.exec(walk.label) || ["", "", ""];
			if (name && name !== before) {
				const end = document.createElement("i");
				const heading = document.createElement("span");
				heading.textContent = name;
				list.append(end, heading);
			}
			before = name;
			this.buttons[i].classList.toggle("number", number !== "");
			this.buttons[i].textContent = number || walk.label || walk.vaddr;
			this.buttons[i].setAttribute("aria-label", `${walk.label || "address"} ${walk.vaddr}`);
			list.append(this.buttons[i]);
		});
		list.hidden = this.walks.length < 2;
	}

	/** @param {number} i */
	choose(i) {
		const nr = this.walks.length;
		this.chosen = (i + nr) % nr;
		const walk = this.walks[this.chosen], list = walkPart("steps");
		walkPart("stage").innerHTML = walk.svg;
		list.replaceChildren(...walk.steps.map((words) => {
			const item = document.createElement("li");
			item.textContent = words;
			return item;
		}));
		this.buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === this.chosen)));
		this.buttons[this.chosen].scrollIntoView({block: "nearest"});
		walkPart("found").textContent = "";
		this.go(Math.min(this.step, walk.steps.length));
	}

	/**
	 * Step 0 is the whole walk.
	 *
	 * @param {number} step
	 */
	go(step) {
		const {steps} = this.walks[this.chosen];
		this.step = Math.max(0, Math.min(step, steps.length));
		for (const part of document.querySelectorAll("#stage g[data-step]")) {
			const own = Number(part.getAttribute("data-step"));
			part.classList.toggle("later", this.step > 0 && own > this.step);
		}
		walkPart("caption").textContent = this.step ? steps[this.step - 1] : this.data.hint;
		walkPart("count").textContent = this.step ? `Step ${this.step} of ${steps.length}` : `${steps.length} steps`;
		/** @type {HTMLButtonElement} */ (walkPart("back")).disabled = !this.step;
		/** @type {HTMLButtonElement} */ (walkPart("next")).disabled = this.step === steps.length;
	}

	/** @param {string} words An address, or a label. */
	find(words) {
		const number = /^(0x)?[0-9a-f]+$/i.test(words) ? BigInt(`0x${words.replace(/^0x/i, "")}`) : -1n;
		const at = this.walks.findIndex((walk) => walk.label === words || BigInt(walk.vaddr) === number);
		if (at >= 0)
			this.choose(at);
		else if (words)
			walkPart("found").textContent = number < 0n ? `there is no ${words} here` : this.data.remedy;
	}

	/** @param {KeyboardEvent} event */
	press(event) {
		const {key} = event;
		if (event.ctrlKey || event.altKey || event.metaKey)
			return;
		if (event.target === this.search) {
			if (key === "Escape")
				this.search.blur();
			return;
		}
		/** @type {Record<string, () => void>} */
		const actions = {
			ArrowRight: () => this.go(this.step + 1),
			ArrowLeft: () => this.go(this.step - 1),
			ArrowDown: () => this.choose(this.chosen + 1),
			ArrowUp: () => this.choose(this.chosen - 1),
			Home: () => this.go(1),
			End: () => this.go(Infinity),
			0: () => this.go(0),
			Escape: () => this.go(0),
			"/": () => this.search.focus(),
		};
		if (!(key in actions))
			return;
		event.preventDefault();
		actions[key]();
	}
}

async function startWalks() {
	try {
		const data = await unpackWalks(walkPart("data").textContent);
		Object.assign(window, {physview: new WalkPage(data)});
		document.documentElement.dataset.state = "ready";
	} catch (error) {
		document.documentElement.dataset.state = "failed";
		walkPart("caption").textContent = `the page cannot be drawn: ${error.message}`;
		throw error;
	}
}
startWalks();
