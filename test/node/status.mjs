// The status page, without JavaScript and at two widths: what it says, that it fetches
// nothing, and that nothing is wider than the screen.
import {chromium} from 'playwright-core';
import assert from 'node:assert/strict';

const [url] = process.argv.slice(2);
const browser = await chromium.launch({executablePath: process.env.CHROMIUM, args: ['--no-sandbox']});
try {
	for (const [name, width, height, dark] of [['desktop', 1280, 900, false], ['phone', 390, 844, false], ['dark', 1280, 900, true]]) {
		const context = await browser.newContext({viewport: {width, height}, javaScriptEnabled: false, colorScheme: dark ? 'dark' : 'light', deviceScaleFactor: name === 'phone' ? 2 : 1});
		const page = await context.newPage();
		const asked = [];
		page.on('request', request => asked.push(request.url()));
		const answer = await page.goto(url);
		assert.equal(answer.status(), 200);
		assert.match(answer.headers()['content-type'], /^text\/html/);
		assert.match(answer.headers()['content-security-policy'], /default-src 'none'/);
		const text = await page.locator('body').innerText();
		for (const said of ['ready', 'Revocation feeds', 'corp', 'app', 'no_token', 'revoked', 'token_malformed', 'Latest refusals', 'let through']) {
			assert.ok(text.includes(said), `${name}: the page does not say ${said}: ${text}`);
		}
		for (const secret of (process.env.SECRETS ?? '').split(' ')) {
			assert.ok(!(await page.content()).includes(secret), `${name}: ${secret} is on the page`);
		}
		assert.ok(await page.locator('svg rect.allowed').count() > 1, 'the chart has no bars');
		assert.ok(await page.locator('svg rect.refused').count() > 0, 'the chart shows no refusals');
		const box = await page.locator('main').boundingBox();
		assert.ok(box.width <= width, `${name}: the page is ${box.width} wide`);
		await page.screenshot({path: `${process.env.SCREENSHOTS}/status-${name}.png`, fullPage: true});
		assert.deepEqual([...new Set(asked)], [url], 'it fetched something else');
		await context.close();
	}
} finally {
	await browser.close();
}
