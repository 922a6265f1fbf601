//! The NSQ backend against a stand-in and, wherever there is one, against a real nsqd: one test for
//! each trap of the protocol and of the client libraries, and for each way in which a connection
//! can fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod connecting;
mod consuming;
mod library;
mod lying;
mod place;
mod publishing;
mod real;
mod server;
mod standin;

use std::time::Duration;

use place::Place;
use standin::Options;

/// Plays each test twice.
macro_rules! on_both {
    ($($module:ident::$name:ident)*) => {
        mod on_a_stand_in {
            use super::*;
            $(#[tokio::test]
            async fn $name() {
                super::$module::$name(&Place::stand_in(Options::default())).await;
            })*
        }

        mod on_a_real_nsqd {
            use super::*;
            $(#[tokio::test]
            async fn $name() {
                if server::is_there(stringify!($name)) {
                    let server = server::Server::nsqd(&[]).await.unwrap();
                    super::$module::$name(&Place::Real(server)).await;
                }
            })*
        }
    };
}

on_both! {
    connecting::what_is_missing_exists_otherwise_or_cannot_be_is_told
    connecting::a_subscription_begins_where_nsqd_can_let_it_begin
    connecting::names_of_memory_only_topics_are_marked_on_the_wire_alone
    connecting::closing_leaves_no_socket_and_everything_of_it_is_closed
    connecting::asking_for_the_depth_shows_that_the_consumers_are_connected
    connecting::the_numbers_of_the_broker_are_those_it_tells
    publishing::confirmations_that_wait_fail_when_the_connection_is_lost_and_not_at_their_timeout
    publishing::what_is_published_while_the_connection_is_down_is_refused_and_not_stored_later
    publishing::more_publishes_than_may_be_in_flight_do_not_block_each_other
    publishing::what_nsqd_would_refuse_is_refused_here_and_the_connection_lives_on
    publishing::a_batch_keeps_its_places_around_those_that_are_refused
    publishing::a_delayed_message_comes_later_and_keeps_a_batch_in_order
    publishing::closing_a_publisher_waits_for_what_it_was_handed
    consuming::a_late_acknowledgement_is_refused_and_the_connection_lives_on
    consuming::a_consumer_goes_on_after_its_connection_came_back
    consuming::what_came_on_a_connection_that_was_lost_can_be_settled_no_more
    consuming::an_acknowledgement_that_nobody_confirms_is_indeterminate_in_time
    consuming::a_consumer_that_does_not_ask_locks_its_prefetch_and_loses_nothing
    consuming::a_prefetch_beyond_what_nsqd_takes_is_what_it_takes
    consuming::what_a_consumer_was_never_handed_returns_at_once_when_it_leaves
    consuming::what_was_handed_out_can_be_settled_after_its_consumer_was_closed
    consuming::a_consumer_that_is_dropped_gives_back_and_leaves_no_socket
    consuming::a_cancelled_receive_loses_nothing
    consuming::each_delivery_says_its_attempt_and_each_settlement_does_what_it_says
    consuming::touching_extends_the_lock
    consuming::a_message_settled_twice_in_one_batch_is_settled_once
    consuming::unconfirmed_acknowledgements_arrive_also_when_the_connection_is_closed_at_once
    consuming::a_consumer_of_a_deleted_topic_ends_and_does_not_make_it_again
}

#[tokio::test]
async fn one_late_acknowledgement_through_tokio_nsq_ends_its_connection_and_gives_everything_it_held_to_others()
 {
    let options = Options { msg_timeout: Duration::from_secs(1), ..Options::default() };
    let stand_in = Place::stand_in(options);
    library::one_late_acknowledgement_ends_the_connection(stand_in.tcp(), stand_in.http()).await;
    if server::is_there("what tokio-nsq does") {
        let server = server::Server::nsqd(&["-msg-timeout=1s"]).await.unwrap();
        library::one_late_acknowledgement_ends_the_connection(server.tcp, server.http).await;
    }
}
