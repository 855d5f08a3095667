//! What the host asks for.

use super::{Engine, Reading, reading::MAILBOX_ROWS, work::Work};
use crate::{
    flow::{
        Account, Command, CommandError, CommandId, Event, LinkState, Reply, StopReason, inbox,
        login, notify,
        query::{Query, iq},
        send::Sends,
    },
    state::Table,
    wire::node::Node,
};

impl Engine {
    pub(super) fn command(&mut self, id: CommandId, command: Command) {
        match command {
            Command::Link => {
                if let LinkState::LoggedOut(_) = self.cx.account.state {
                    // New keys: the old ones belong to a device that the service has forgotten.
                    self.cx.account = Account::create(&mut self.cx.rng, self.cx.now.unix.secs());
                    self.cx.save_account();
                }
                self.pairing.link(&mut self.cx, &mut self.link, id);
            }
            // Checked before its row is asked for: not every id is the name of a row.
            Command::Send(request) => match Sends::check(&request) {
                Ok(()) => self.enqueue(Work::Accept(Some(id), request)),
                Err(error) => self.cx.reply(id, Err(error)),
            },
            Command::Acknowledge(upto) => {
                let result = inbox::acknowledge(&mut self.cx, upto).map(|()| Reply::Done);
                self.cx.reply(id, result);
            }
            Command::MarkRead { chat, sender, ids } => {
                let result = if ids.len() > 256 {
                    Err(CommandError::Invalid("at most 256 ids at once"))
                } else if !self.login.is_logged_in() {
                    Err(CommandError::Busy)
                } else {
                    notify::mark_read(&mut self.cx, &chat, sender.as_ref(), &ids);
                    Ok(Reply::Done)
                };
                self.cx.reply(id, result);
            }
            Command::Presence { available, name } => {
                if let Some(name) = name {
                    self.cx.account.push_name = Some(name);
                    self.cx.save_account();
                }
                self.cx.config.available = available;
                if self.login.is_logged_in() {
                    login::announce(&mut self.cx, available);
                }
                self.cx.reply(id, Ok(Reply::Done));
            }
            Command::CheckMailbox => {
                let waiting = self.checking_mailbox || self.work.has_mail();
                if !waiting && self.cx.account.is_linked() {
                    self.checking_mailbox = true;
                    self.scan(Table::Mailbox, None, MAILBOX_ROWS, Reading::Mailbox);
                }
                self.cx.reply(id, Ok(Reply::Done));
            }
            Command::Change(_)
            | Command::Sync(_)
            | Command::Contacts { .. }
            | Command::Chats { .. }
            | Command::Settings { .. } => {
                if let Some(work) = self.sync.command(&mut self.cx, id, command) {
                    self.enqueue(Work::Sync(work));
                }
            }
            Command::Logout => self.log_out(id),
            Command::Shutdown => {
                self.cx.reply(id, Ok(Reply::Done));
                self.stop(StopReason::Shutdown);
            }
        }
    }

    pub(super) fn log_out(&mut self, id: CommandId) {
        let Some(own) = self
            .cx
            .account
            .jid
            .clone()
            .filter(|_| self.cx.account.is_linked())
        else {
            self.cx.reply(id, Err(CommandError::NotLinked));
            return;
        };
        if !self.login.is_logged_in() || self.unlinking.is_some() {
            self.cx.reply(id, Err(CommandError::Busy));
            return;
        }
        let remove = Node::new("remove-companion-device")
            .attr("jid", own)
            .attr("reason", "user_initiated");
        self.unlinking = Some(id);
        self.cx
            .ask(iq("md", "set").child(remove), Query::Logout(id));
    }

    pub(super) fn logged_out(&mut self, code: u16) {
        if self.cx.account.is_linked() {
            self.cx.account.state = LinkState::LoggedOut(code);
            self.cx.save_account();
            self.cx.emit(Event::LoggedOut { code });
        }
        if let Some(id) = self.unlinking.take() {
            self.cx.reply(id, Ok(Reply::Done));
        }
        self.stop(StopReason::LoggedOut(code));
    }
}
