// Walks the demo's story in Chromium, as a person would, and looks at what a person cannot: the cookie's
// attributes, and that no script of the page can get at the token.
//
//     node browser.mjs URL
//
//     CHROMIUM      the browser's path; default /usr/bin/chromium
//     SCREENSHOTS   a folder for pictures of the pages, wide and narrow; default: none are taken
//
// Prints a line per step. Ends with status 1 and the reason at the first thing that is not as it should be.

import assert from 'node:assert/strict';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { chromium } from 'playwright-core';

const [url] = process.argv.slice(2);
const { CHROMIUM = '/usr/bin/chromium', SCREENSHOTS } = process.env;
const origin = new URL(url).origin;

const profile = await fs.mkdtemp(path.join(os.tmpdir(), 'durward-browser-'));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: CHROMIUM,
  // Without a sandbox, as containers and root have none to give; and silent, as there may be no network.
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'],
  viewport: { width: 1200, height: 860 },
});
context.setDefaultTimeout(15_000);

try {
  await walk(context.pages()[0] ?? await context.newPage());
} catch (err) {
  console.error(err.stack);
  process.exitCode = 1;
} finally {
  await context.close();
  await fs.rm(profile, { recursive: true, force: true });
}

async function walk(page) {
  const faults = [];
  page.on('pageerror', (err) => faults.push(err.message));
  page.on('console', (m) => { if (/Content Security Policy/.test(m.text())) faults.push(m.text()); });
  page.on('request', (r) => { if (!r.url().startsWith(origin) && !r.url().startsWith('data:')) faults.push(`asked for ${r.url()}`); });

  const shoot = async (name) => {
    if (!SCREENSHOTS) return;
    for (const [suffix, viewport] of [['wide', { width: 1200, height: 860 }], ['phone', { width: 390, height: 844 }]]) {
      await page.setViewportSize(viewport);
      await page.screenshot({ path: path.join(SCREENSHOTS, `${name}-${suffix}.png`), fullPage: true });
      // Nothing sticks out at the side of a phone.
      const [content, screen] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
      assert.ok(content <= screen, `${name} is ${content}px wide on a screen of ${screen}px`);
    }
    await page.setViewportSize({ width: 1200, height: 860 });
  };

  // A press is one request; its entry appears on top of the log.
  const log = page.locator('#log > li');
  let presses = 0;
  const press = async (id, status, reason = '') => {
    await page.click(`#${id}`);
    presses++;
    await page.waitForFunction((n) => document.querySelectorAll('#log > li').length === n, presses);
    const entry = log.first();
    const got = [await entry.getAttribute('data-status'), await entry.getAttribute('data-reason')];
    assert.deepEqual(got, [String(status), reason], `${id}: ${await entry.innerText()}`);
    console.log(`${id}: ${status} ${reason}`);
    return entry.innerText();
  };
  const session = async () => (await context.cookies(origin)).find((c) => c.name.includes('session'));

  // What the page's own scripts, and so an injected one, can get hold of.
  const isOutOfReach = async (token) => {
    const reach = await page.evaluate(async () => JSON.stringify([
      document.cookie, { ...localStorage }, { ...sessionStorage }, (await indexedDB.databases()).map((d) => d.name),
      await caches.keys(), document.documentElement.outerHTML, location.href, window.name,
    ]));
    for (const part of token.split('.')) assert.ok(!reach.includes(part), 'a part of the token is within reach of scripts');
    assert.equal(await page.evaluate(() => document.cookie), '');
  };

  await page.goto(url);
  assert.equal(await session(), undefined);
  await shoot('start');
  await press('read', 401, 'no_token');

  // Alice may read.
  assert.match(await press('alice', 200), /X-Forwarded-User: alice/);
  const cookie = await session();
  const { name, domain, path: cookiePath, httpOnly, secure, sameSite } = cookie;
  assert.deepEqual({ name, domain, cookiePath, httpOnly, secure, sameSite },
    { name: '__Host-session', domain: 'localhost', cookiePath: '/', httpOnly: true, secure: true, sameSite: 'Lax' }); // a Domain attribute would show as ".localhost"
  const left = cookie.expires - Date.now() / 1000;
  assert.ok(left > 500 && left <= 601, `the cookie lives for ${left} s, not as long as its token`);
  await isOutOfReach(cookie.value);
  const received = await press('read', 200);
  assert.match(received, /X-Forwarded-Email: alice@example.com/);
  assert.doesNotMatch(received, /^ *(Cookie|Authorization):/m);
  await press('write', 403, 'insufficient_scope');
  await press('admin', 403, 'forbidden');

  // Bob may write, until his session is revoked; his browser still has the cookie then.
  await press('bob', 200);
  assert.notEqual((await session()).value, cookie.value);
  await press('write', 201);
  await press('revoke', 200);
  const revoked = (await session()).value;
  await press('read', 401, 'revoked');
  assert.equal(await page.locator('#story li.done').count(), 7, 'the story is not walked to its end');
  await shoot('story');
  assert.equal(await session(), undefined, 'a revoked cookie is cleared');
  await press('read', 401, 'no_token');

  // Put back, it is as revoked as before; on a page of its own that leads to the login, and back.
  const { value, ...attributes } = cookie;
  await context.addCookies([{ ...attributes, value: revoked }]);
  await page.goto(`${origin}/admin/?from=page`);
  assert.equal(new URL(page.url()).pathname, '/login/');
  await shoot('login');
  await page.click('button[value=carol]');
  await page.waitForURL(`${origin}/admin/?from=page`);
  assert.match(await page.innerText('body'), /welcome, administrator/);

  // Alice opens it, too, and gets a page for people, not JSON.
  await page.goto(url);
  assert.equal(await page.innerText('#who'), 'Logged in as Carol');
  presses = 0;
  await press('alice', 200);
  const [answer] = await Promise.all([page.waitForResponse(`${origin}/admin/`), page.click('#page')]);
  assert.equal(answer.status(), 403);
  assert.match(answer.headers()['content-type'], /^text\/html/);
  assert.match(answer.headers()['content-security-policy'], /default-src 'none'/);
  await page.waitForLoadState();
  assert.equal(await page.innerText('h1'), 'Forbidden');
  assert.doesNotMatch(await page.content(), /groups|allow\[/); // the detail stays in the log
  await shoot('refused');
  await page.goBack();

  // Signing out clears the cookie and revokes its token.
  presses = await log.count();
  await press('carol', 200);
  await press('admin', 200);
  const { value: signedOut } = await session();
  await press('out', 204);
  assert.equal(await session(), undefined);
  await context.addCookies([{ ...attributes, value: signedOut }]);
  await press('admin', 401, 'revoked');

  assert.deepEqual(faults, []);
  console.log('the story holds');
}
